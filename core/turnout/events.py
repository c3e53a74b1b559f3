"""What happens in flows, as one stream of events, the same on every runner.

Version 1 of the schema. Times are seconds since 1970 (UTC) on the clock of the process that runs the flow, wherever the
thing happened. Fields may be added to a kind of event, and kinds to the stream, without a new version.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from ._event_stream import EVENT, STREAM, Subscription
from ._places import host_and_process
from ._version import __version__

__all__ = [
    "VERSION",
    "CallCreated",
    "CallFinished",
    "CallReady",
    "CallRetrying",
    "CallSent",
    "CallStarted",
    "Event",
    "FlowFinished",
    "FlowStarted",
    "LogRecord",
    "StreamStarted",
    "Subscription",
    "WorkerDown",
    "WorkerUp",
    "as_json",
    "parse",
    "read",
    "subscribe",
]

VERSION: Final = 1


class StreamStarted(NamedTuple):
    """A process began to tell its events: the first line of a file of events."""

    time: float
    version: int
    """The schema's."""
    turnout: str
    """The version of Turnout."""
    host: str
    pid: int

    @property
    def kind(self) -> Literal["stream_started"]:
        """The name of this kind in JSON."""
        return "stream_started"


class FlowStarted(NamedTuple):
    """A flow run began: its body is about to run for the first time."""

    time: float
    flow: str
    """The id of the flow run, a UUID."""
    name: str
    """The name of the run."""
    flow_name: str
    """The name of the flow."""
    runner: str
    """Its runner, as its ``repr`` says it, without passwords."""
    slots: int | None = None
    """How many calls that runner runs at once, as far as that is known when the flow begins."""
    parent_flow: str | None = None
    """The flow run in whose body, or in whose calls, it was called."""
    parent_call: int | None = None
    """The call in whose body it was called."""

    @property
    def kind(self) -> Literal["flow_started"]:
        """The name of this kind in JSON."""
        return "flow_started"


class FlowFinished(NamedTuple):
    """A flow run is over: no call of it is open, and no body of it runs."""

    time: float
    flow: str
    state: str
    """``"Completed"``, ``"Failed"``, ``"Crashed"``, ``"Cancelled"`` or ``"TimedOut"``."""
    seconds: float
    """Since it began."""
    message: str = ""
    """What went wrong, in a line; empty if nothing did."""

    @property
    def kind(self) -> Literal["flow_finished"]:
        """The name of this kind in JSON."""
        return "flow_finished"


class CallCreated(NamedTuple):
    """A call of a task was submitted."""

    time: float
    call: int
    """The number of the call, unique in the stream."""
    flow: str
    """The flow run in whose body, or in whose calls, it was submitted."""
    task: str
    """The name of the task."""
    name: str
    """The name of the run, such as ``"clean-3"``; one that ``task_run_name`` gives is told when the call is ready."""
    runner: str
    """The name of the runner that will run it, such as ``"process"``; ``"here"`` for a task called as a function."""
    parent: int | None = None
    """The call in whose body it was submitted."""
    needs: tuple[int, ...] = ()
    """The calls for which it waits."""

    @property
    def kind(self) -> Literal["call_created"]:
        """The name of this kind in JSON."""
        return "call_created"


class CallReady(NamedTuple):
    """Nothing keeps a call waiting but room at its runner."""

    time: float
    call: int
    name: str
    """The name of the run, now for good."""

    @property
    def kind(self) -> Literal["call_ready"]:
        """The name of this kind in JSON."""
        return "call_ready"


class CallSent(NamedTuple):
    """A call left for a worker in another process."""

    time: float
    call: int
    attempt: int
    """Which attempt at it this is, from 1."""
    batch: int
    """The number of the batch with which it travels."""
    bytes_in: int
    """The size of its arguments, as far as they travel with it."""

    @property
    def kind(self) -> Literal["call_sent"]:
        """The name of this kind in JSON."""
        return "call_sent"


class CallStarted(NamedTuple):
    """The body of a call began."""

    time: float
    call: int
    attempt: int
    worker: str = ""
    """Where it runs: host and process, such as ``"node7:4242"``; empty if nobody knows."""
    slot: int = 0
    """Which of the things that this worker does side by side it is, from 0."""

    @property
    def kind(self) -> Literal["call_started"]:
        """The name of this kind in JSON."""
        return "call_started"


class CallRetrying(NamedTuple):
    """An attempt at a call failed, or its worker died, and the call will be run again."""

    time: float
    call: int
    attempt: int
    """The attempt that failed."""
    state: str
    """What the call would have become: ``"Failed"``, ``"TimedOut"`` or ``"Crashed"``."""
    delay: float = 0.0
    """How long it waits before it is run again, in seconds."""
    message: str = ""
    """What went wrong, in a line."""

    @property
    def kind(self) -> Literal["call_retrying"]:
        """The name of this kind in JSON."""
        return "call_retrying"


class CallFinished(NamedTuple):
    """A call is final."""

    time: float
    """When its body ended; when it became final, if that was earlier, or if it had no body."""
    call: int
    flow: str
    task: str
    name: str
    state: str
    """``"Completed"``, ``"Cached"``, ``"Failed"``, ``"UpstreamFailed"``, ``"Crashed"``, ``"Cancelled"`` or
    ``"TimedOut"``."""
    attempt: int
    """The attempt that decided; 0 if none began."""
    seconds: float
    """How long the body ran in that attempt; 0 if none began."""
    worker: str = ""
    host: str = ""
    pid: int = 0
    """The process of the worker; 0 if nobody knows."""
    slot: int = 0
    batch: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    """The size of its result, packed; 0 if it was not."""
    message: str = ""
    """What went wrong, in a line; empty if nothing did."""
    traceback: str = ""
    """The traceback of the exception, without frames of Turnout's; empty if there is none."""

    @property
    def kind(self) -> Literal["call_finished"]:
        """The name of this kind in JSON."""
        return "call_finished"


class LogRecord(NamedTuple):
    """Somebody logged something in a flow or in a call."""

    time: float
    level: str
    """``"INFO"``, say."""
    logger: str
    message: str
    flow: str | None = None
    call: int | None = None
    worker: str = ""

    @property
    def kind(self) -> Literal["log"]:
        """The name of this kind in JSON."""
        return "log"


class WorkerUp(NamedTuple):
    """A worker is there, or was heard of for the first time. The process of a flow is one, for runners of threads."""

    time: float
    worker: str
    host: str
    pid: int
    runner: str
    """The name of the runner whose worker it is."""

    @property
    def kind(self) -> Literal["worker_up"]:
        """The name of this kind in JSON."""
        return "worker_up"


class WorkerDown(NamedTuple):
    """A worker is gone."""

    time: float
    worker: str
    reason: str
    """``"stopped"`` if its runner was, else what is known of its death."""

    @property
    def kind(self) -> Literal["worker_down"]:
        """The name of this kind in JSON."""
        return "worker_down"


Event: TypeAlias = (
    StreamStarted
    | FlowStarted
    | FlowFinished
    | CallCreated
    | CallReady
    | CallSent
    | CallStarted
    | CallRetrying
    | CallFinished
    | LogRecord
    | WorkerUp
    | WorkerDown
)

# By their names, of which the events themselves are asked.
_KINDS: Final[dict[str, type[Any]]] = {kind.kind.fget(None): kind for kind in get_args(Event)}


def subscribe(callback: Callable[[Sequence[Event]], object], *, interval_seconds: float = 0.1) -> Subscription:
    """Have a function called with what happens in all flows of this process, from now on.

    Parameters
    ----------
    callback
        Takes events, some at a time, in the order in which this process learnt of them. Called in a thread of its own,
        never by two threads at once; first with :class:`StreamStarted`, and with the workers that are up. What it
        raises is logged, and ends the subscription.
    interval_seconds
        How long events may wait to be told, in seconds.

    Returns
    -------
    Subscription
        Close it, or use it in a ``with`` statement, to end it: what has happened by then is told before. When a flow
        that was not called by another one returns, all that happened in it has been told.

    Examples
    --------
    >>> from turnout import events, flow, task
    >>> @task
    ... def double(x):
    ...     return 2 * x
    >>> @flow
    ... def main():
    ...     return double.map([1, 2])
    >>> seen = []
    >>> with events.subscribe(seen.extend):
    ...     main()
    [2, 4]
    >>> sorted(event.name for event in seen if isinstance(event, events.CallFinished))
    ['double-0', 'double-1']
    """
    started = StreamStarted(time.time(), VERSION, __version__, *host_and_process())
    return STREAM.subscribe(callback, interval_seconds, (EVENT, started))


def as_json(event: Event) -> str:
    """Return an event as a line of JSON: its kind, and those of its fields that are not as they are by default."""
    usual = event._field_defaults
    fields = zip(event._fields, event, strict=True)
    told = {name: value for name, value in fields if name not in usual or value != usual[name]}
    return json.dumps({"kind": event.kind, **told})


def read(path: str | Path) -> Iterator[Event]:
    """Yield the events of a file that ``TURNOUT_EVENTS`` or ``turnout run --events`` has written.

    Kinds and fields that this version doesn't know are left out; so is a last line that was cut off.

    Raises
    ------
    ValueError
        If a line is no event.
    """
    with Path(path).open(encoding="utf-8") as lines:
        yield from parse(lines)


def parse(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events in lines of JSON, as :func:`read` does."""
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            kind = _KINDS.get(fields.pop("kind"))
            if kind is not None:
                yield _made(kind, fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if not line.endswith("\n"):
                return
            raise ValueError(f"Line {number} is no event: {line.rstrip()[:80]!r}.") from error


def _made(kind: type[Any], fields: dict[str, Any]) -> Any:
    if "needs" in fields:
        fields["needs"] = tuple(fields["needs"])
    return kind(**{name: value for name, value in fields.items() if name in kind._fields})
