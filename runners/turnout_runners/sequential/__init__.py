"""Runs each call in ``submit``, in the thread that submits it: for debugging, and the measure of the others."""

from __future__ import annotations

from collections import deque

from turnout.runner import Batch, Capabilities, Host, Plan, TaskRunner

__all__ = ["SequentialTaskRunner"]


class SequentialTaskRunner(TaskRunner):
    """One call at a time, in order of submission; ``submit`` returns when the call is over, retries and all.

    In an async flow, where waiting would block the event loop, calls run one at a time on a thread instead.

    Examples
    --------
    >>> from turnout import flow, task
    >>> from turnout_runners.sequential import SequentialTaskRunner
    >>> @task
    ... def say(word):
    ...     print(word)
    >>> @flow(task_runner=SequentialTaskRunner())
    ... def talk():
    ...     say.submit("first")
    ...     print("second")
    >>> talk()
    first
    second
    """

    capabilities: Capabilities = Capabilities(
        in_process=True, inline=True, cancel="cooperative", nested="shared", streams=True, batch_seconds=0.0
    )

    def start(self, host: Host) -> None:
        """Start nothing."""
        self._host = host

    def plan(self) -> Plan:
        """Return a plan of one slot."""
        return Plan(slots=1)

    def slots(self) -> int:
        """Return 1."""
        return 1

    def submit(self, batch: Batch) -> None:
        """Run a batch, and those that become ready by it."""
        ready = deque([batch])
        while ready:
            ready.extend(self._host.execute(ready.popleft()))

    def stop(self) -> None:
        """Stop nothing."""
