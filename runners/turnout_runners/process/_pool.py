"""The pool: one thread of the driver that does all there is to do for its workers, and the ways into it.

Other threads only leave word for it. So nothing that happens to them, not even a Ctrl-C between any two instructions,
leaves the pool half changed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from turnout.errors import RunnerStartError, RunnerStoppedError

from ._crew import Crew, Settings
from ._memory import fill_standard

if TYPE_CHECKING:
    from turnout.runner import Batch, Host

__all__ = ["Pool"]

_logger: Final = logging.getLogger("turnout")


class Pool:
    """Worker processes for one started runner.

    Parameters
    ----------
    settings
        What the workers are like.
    host
        Where outcomes go.
    """

    def __init__(self, settings: Settings, host: Host) -> None:
        # Before anything else is opened, here or for the workers.
        fill_standard()
        self._selector = selectors.DefaultSelector()
        self._crew = Crew(settings, host, self._selector)
        self._words: deque[Callable[[], None]] = deque()
        self._wakes, self._woken = socket.socketpair()
        for end in (self._wakes, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, lambda _: self._woken.recv(4096))
        self._asleep = False
        self._stopped = False
        # A daemon: if nobody stops the pool, the driver's end must not wait for it. The workers notice that end.
        self._thread = threading.Thread(target=self._live, name="turnout-process-pool", daemon=True)
        _pools.add(self)
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        """Take a batch.

        Raises
        ------
        RunnerStartError
            If its workers can't be started.
        RunnerStoppedError
            If it has been stopped.
        """
        if self._stopped:
            raise RunnerStoppedError("The process runner has been stopped, and takes no more calls.")
        if self._crew.broken is not None:
            raise RunnerStartError(_start_error(self._crew.broken))
        assignment = self._crew.enlist(batch)
        if threading.current_thread() is self._thread and not self._words:
            # It tells news just now, and those may take longer to be taken in than a worker has anything to do.
            self._crew.add(assignment)
            self._crew.give_out()
        else:
            self._leave_word(lambda: self._crew.add(assignment))

    def cancel(self, batch: Batch) -> bool:
        """Stop a batch, and return whether it is not over yet."""
        is_open = id(batch) in self._crew.open
        self._leave_word(lambda: self._crew.cancel(batch))
        return is_open

    def recall(self, batch: Batch) -> None:
        """Give back what has not begun of a batch."""
        self._leave_word(lambda: self._crew.recall(batch))

    def stop(self) -> None:
        """End all workers, and return when they are gone; twice is fine."""
        self._stopped = True
        self._leave_word(self._crew.disband)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def abandon(self) -> None:
        """Let go of everything, in a process that was forked from the driver: the pool is not its own."""
        self._crew.abandon()
        self._close()

    def _leave_word(self, word: Callable[[], None]) -> None:
        self._words.append(word)
        if self._asleep:
            # Full: then it wakes anyway. Closed: then nobody is there to hear.
            with contextlib.suppress(OSError):
                self._wakes.send(b"!")

    def _live(self) -> None:
        try:
            while self._crew.workers or not self._stopped:
                self._turn()
        except BaseException:
            _logger.exception("The process runner's own thread failed")
            self._crew.disband()
        finally:
            self._hear_words()
            self._crew.bury_all()
            self._close()

    def _turn(self) -> None:
        # In this order: who leaves word now either sees the flag, or is seen by the check for words.
        self._asleep = True
        events = self._selector.select(0 if self._words else self._crew.patience())
        self._asleep = False
        for key, happened in events:
            key.data(happened)
        self._hear_words()
        self._crew.check(time.monotonic())
        self._crew.balance()

    def _hear_words(self) -> None:
        while self._words:
            self._words.popleft()()

    def _close(self) -> None:
        self._selector.close()
        self._wakes.close()
        self._woken.close()


def _start_error(problem: str) -> str:
    return (
        f"The workers of the process runner can't start: {problem}\n"
        "Check the python=, env= and initializer= of ProcessPoolTaskRunner, or use another runner, such as "
        'task_runner="thread".'
    )


_pools: Final[weakref.WeakSet[Pool]] = weakref.WeakSet()


def _abandon_all() -> None:
    # A child that kept these descriptors would keep the workers alive after the driver's death.
    for pool in list(_pools):
        pool.abandon()


os.register_at_fork(after_in_child=_abandon_all)
