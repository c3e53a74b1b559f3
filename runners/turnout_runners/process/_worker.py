"""One worker process, as the driver sees it, and the batches that it holds."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from turnout.runner import Outcome, OutcomeKind

from . import _memory
from ._carried import carried
from ._claims import Claims
from ._memory import Descriptor
from ._wire import Channel, encode
from ._worker_main import CONTROL

if TYPE_CHECKING:
    from turnout.runner import Batch

    from ._launch import Launched

__all__ = ["Assignment", "Worker"]

_KINDS: Final = tuple(OutcomeKind)
# One that runs, and two that wait at the worker: it never waits for the driver between small batches.
_DEPTH: Final = 3


class Assignment:
    """A batch that the pool has, and what is known of its calls."""

    __slots__ = ("batch", "deaths", "left", "number", "running", "stopping", "worker")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.left = set(range(len(batch.calls)))
        """The calls without an outcome."""
        self.running: set[int] = set()
        """Those of them that have begun: several where they are asynchronous."""
        self.worker: Worker | None = None
        self.number = 0
        """Its number at the worker."""
        self.stopping = False
        self.deaths = 0
        """How many workers died with it, though it had not begun and they ran nothing else."""

    def __lt__(self, other: Assignment) -> bool:
        return self.batch.seq < other.batch.seq

    def outcomes(self, rows: Iterable[tuple[Any, ...]]) -> list[Outcome]:
        """Take note of what the worker sent, and return it as outcomes."""
        outcomes = [Outcome(row[0], _KINDS[row[1]], *row[2:]) for row in rows]
        for outcome in outcomes:
            if outcome.kind >= OutcomeKind.VALUE:
                self.left.discard(outcome.index)
                self.running.discard(outcome.index)
            elif outcome.kind == OutcomeKind.STARTED:
                self.running.add(outcome.index)
        return outcomes

    def outcomes_of_end(self, kind: OutcomeKind, data: Any = None) -> list[Outcome]:
        """Return outcomes of one kind for all calls that are left, and let none be left."""
        outcomes = [Outcome(index, kind, data) for index in sorted(self.left)]
        self.left.clear()
        return outcomes

    def outcomes_of_death(self, cause: str, begun: int) -> list[Outcome]:
        """Return the outcomes of a batch that had begun when its worker died, and let no call be left.

        Parameters
        ----------
        cause
            What the worker died of.
        begun
            How many of several calls had begun, which run in order.
        """
        # Of a single call, or of async ones: if none is known to have begun, it was about to.
        suspects = {begun - 1} & self.left if begun else self.running or {min(self.left)}
        known = self.stopping or len(suspects) == 1
        kind = OutcomeKind.CRASHED if known else OutcomeKind.LOST
        text = "stopped" if self.stopping else cause
        outcomes = [
            Outcome(index, kind, text)
            if index in suspects
            # It was over, and the worker died before it could say what came of it; or it never began.
            else Outcome(index, OutcomeKind.LOST if index < begun else OutcomeKind.RETURNED)
            for index in sorted(self.left)
        ]
        self.left.clear()
        return outcomes


class Worker:
    """A worker process and the driver's end of everything that belongs to it. For one thread only.

    Parameters
    ----------
    launched
        The process and what connects it.
    max_calls
        After how many calls it is to be replaced, None for never.
    """

    def __init__(self, launched: Launched, max_calls: int | None) -> None:
        launched.connection.setblocking(False)
        self.process = launched.process
        self.channel = Channel(launched.connection, forwards=True)
        self._claims = Claims(launched.claims)
        self._lifeline = launched.lifeline
        self._log = launched.log
        self.exit = _exit_of(self.process.pid)
        """Readable when the process is dead; None where the system has no such thing."""
        self.held: list[Assignment] = []
        """In the order in which they run."""
        self.is_ready = False
        self.is_leaving = False
        self.is_frozen = False
        self.is_killed = False
        self.deadline = float("inf")
        """When it is killed if it hasn't ended."""
        self.writes = False
        """Whether the pool waits for room in its socket."""
        self._max_calls = float("inf") if max_calls is None else max_calls
        self._calls = 0
        self._number = 0
        self._known: set[bytes] = set()
        self._halted = False
        self._collected_elsewhere = False

    def room(self) -> int:
        """Return how many more batches it can take now."""
        usable = self.is_ready and not (self.is_leaving or self.is_frozen or self.is_killed or self.channel.ended)
        return _DEPTH - len(self.held) if usable and not self.is_spent() else 0

    def is_spent(self) -> bool:
        """Return whether it has had all the calls that it may have."""
        return self._calls >= self._max_calls

    def give(self, assignment: Assignment) -> None:
        """Send a batch.

        Raises
        ------
        OSError, MemoryError
            If there is no room for its data.
        """
        batch = assignment.batch
        new = {digest: blob for digest, blob in batch.functions.items() if digest not in self._known}
        frame = encode(self._number + 1, len(batch.calls), (batch.body, [carried(value) for value in batch.upstream]))
        if new:
            self.channel.send(encode(CONTROL, 0, new))
            self._known.update(new)
        self._number += 1
        self.channel.send(frame)
        self._calls += len(batch.calls)
        assignment.worker, assignment.number = self, self._number
        self.held.append(assignment)

    def take_back(self, assignment: Assignment) -> bool:
        """Return whether a batch that it holds has not begun, and now never will."""
        if not self._claims.take(assignment.number):
            return False
        self.held.remove(assignment)
        self._calls -= len(assignment.batch.calls)
        assignment.worker = None
        return True

    def has_begun(self, assignment: Assignment) -> bool:
        """Return whether it began a batch that it holds."""
        return assignment.number <= self._claims.begun

    def runs_nothing(self) -> bool:
        """Return whether it has begun none of what it holds."""
        return not any(map(self.has_begun, self.held))

    def calls_begun(self, assignment: Assignment) -> int:
        """Return how many of several calls of a batch had begun when the worker died."""
        return self._claims.calls_begun if assignment.number == self._claims.begun else 0

    def noted(self, assignment: Assignment) -> list[Outcome]:
        """Return outcomes of several calls that it did not live to send."""
        rows = self._claims.noted(assignment.number) if len(assignment.batch.calls) > 1 else []
        return assignment.outcomes(rows)

    def recall(self, assignment: Assignment) -> None:
        """Let no more calls of a batch begin that it has begun."""
        self._claims.recall(assignment.number)

    def is_past(self, assignment: Assignment) -> bool:
        """Return whether it began another batch after this one."""
        return assignment.number < self._claims.begun

    def freeze(self) -> None:
        """Have the system stop the process where it is, even in C code. It takes effect a little later."""
        self.is_frozen = True
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self.is_frozen = self._halted = False
        self._signal(signal.SIGCONT)

    def is_halted(self) -> bool:
        """Return whether the process stands still, whoever stopped it."""
        self._wait()
        return self._halted

    def is_dead(self) -> bool:
        """Return whether the process has ended; after that, nothing of it is left but what it sent."""
        self._wait()
        return self.process.returncode is not None

    def _wait(self) -> None:
        """Take note of what the system has to tell about the process; it tells everything once."""
        if self.process.returncode is not None:
            return
        try:
            pid, status = os.waitpid(self.process.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        except ChildProcessError:
            pid, status, self._collected_elsewhere = self.process.pid, 0, True
        if pid and (os.WIFSTOPPED(status) or os.WIFCONTINUED(status)):
            self._halted = os.WIFSTOPPED(status)
        elif pid:
            self.process.returncode = os.waitstatus_to_exitcode(status)

    def leave(self, deadline: float) -> None:
        """Tell it that there is nothing more to do."""
        self.is_leaving = True
        self.deadline = deadline
        self.channel.end()

    def kill(self) -> None:
        """End it, and what its tasks started, at once."""
        self.is_killed, self.is_frozen = True, False
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def cause_of_death(self) -> str:
        """Say what the process died of."""
        code = self.process.returncode
        if code is None or self._collected_elsewhere:
            return "ended; other code of the driver's process collected its exit status"
        return f"exit code {code}" if code >= 0 else f"killed by signal {-code} ({_signal_name(-code)})"

    def log_text(self) -> str:
        """Return what the interpreter wrote to its standard error before it was a worker."""
        size = os.fstat(self._log.number).st_size
        return _memory.read(self._log, 0, size).decode(errors="replace").strip()

    def close(self) -> None:
        """Close all descriptors; twice is fine."""
        self.channel.close()
        self._claims.close()
        for descriptor in (self._lifeline, self._log, self.exit):
            if descriptor is not None:
                descriptor.close()

    def _signal(self, number: int) -> None:
        # Not after the process was waited for: its id may be another's by now.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


def _exit_of(pid: int) -> Descriptor | None:
    try:
        return Descriptor(os.pidfd_open(pid))
    except (AttributeError, OSError):
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
