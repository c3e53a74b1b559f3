"""How many calls were submitted and what became of them, counted while somebody shows progress.

Events tell more, and cost microseconds a call. This is one operation of the interpreter for each step of a call.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ._forks import call_in_child
from ._state import StateType

if TYPE_CHECKING:
    from ._engine import Engine
    from ._task import Task

__all__ = ["TALLY", "Steps", "Tally"]


class Steps(NamedTuple):
    """How many calls took which step since somebody looked last, by the names of their tasks."""

    submitted: Mapping[str, int]
    ended: Mapping[tuple[str, str], int]
    """By task and by the name of the type of the final state, such as ``"COMPLETED"``."""
    retried: Mapping[str, int]
    """Attempts that failed, of calls that are run again."""


class Tally:
    """Counts, from when it is begun until it is stopped.

    Examples
    --------
    >>> from turnout import task
    >>> @task
    ... def double(x): ...
    >>> tally = Tally()
    >>> tally.begin()
    >>> for step in (tally.submitted, tally.submitted, tally.completed):
    ...     step(double)
    >>> tally.steps()
    Steps(submitted={'double': 2}, ended={('double', 'COMPLETED'): 1}, retried={})
    """

    def __init__(self) -> None:
        self.submitted: Callable[[Task[..., Any]], None] | None = None
        """Takes the task of a call; None while nobody counts, as the others. Hot path."""
        self.completed: Callable[[Task[..., Any]], None] | None = None
        """Takes the task of a call that ended well. Hot path."""
        self.ended: Callable[[tuple[Task[..., Any], StateType]], None] | None = None
        """Takes the task of a call with its final state."""
        self.retried: Callable[[Task[..., Any]], None] | None = None
        """Takes the task of a call that is run again."""
        self.engines: Final[dict[Engine, None]] = {}
        """Those whose flows run."""
        # Queues, which threads may fill and empty without a lock.
        self._submitted: deque[Task[..., Any]] = deque()
        self._completed: deque[Task[..., Any]] = deque()
        self._ended: deque[tuple[Task[..., Any], StateType]] = deque()
        self._retried: deque[Task[..., Any]] = deque()
        self._added: deque[Steps] = deque()

    def begin(self) -> None:
        """Count from now on."""
        self.submitted = self._submitted.append
        self.completed = self._completed.append
        self.ended = self._ended.append
        self.retried = self._retried.append

    def stop(self) -> None:
        """Count no more, and forget what was counted."""
        self.submitted = self.completed = self.ended = self.retried = None
        for queue in (self._submitted, self._completed, self._ended, self._retried, self._added):
            queue.clear()

    def add(self, steps: Steps) -> None:
        """Count what another process has counted."""
        if self.submitted is not None:
            self._added.append(steps)

    def steps(self) -> Steps:
        """Return what was counted since this was called last. For one thread."""
        # Ends first: a call that has ended was submitted before.
        ended = Counter(_taken(self._ended))
        for task, count in Counter(_taken(self._completed)).items():
            ended[task, StateType.COMPLETED] += count
        retried = Counter(_taken(self._retried))
        submitted = Counter(_taken(self._submitted))
        steps = Steps({}, {}, {})
        for task, count in submitted.items():
            _add(steps.submitted, task.name, count)
        for (task, type_), count in ended.items():
            _add(steps.ended, (task.name, type_.name), count)
        for task, count in retried.items():
            _add(steps.retried, task.name, count)
        for other in _taken(self._added):
            for sums, counts in zip(steps, other, strict=True):
                for key, count in counts.items():
                    _add(sums, key, count)
        return steps


def _taken(queue: deque[Any]) -> list[Any]:
    return [queue.popleft() for _ in range(len(queue))]


def _add(sums: Any, key: Any, count: int) -> None:
    sums[key] = sums.get(key, 0) + count


TALLY: Final = Tally()
"""That of this process."""

# A process that was forked has none of the threads.
call_in_child(TALLY.stop)
