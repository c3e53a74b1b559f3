"""Has an event loop wake up for every signal: also for one that comes when it is about to sleep, or to another thread.

Python runs handlers of signals between two instructions of the main thread. If that has just gone to sleep in a loop,
and the signal has not ended the sleep, the handler would run at the loop's next event, which may never come: 2 of 785
async flows that were sent SIGTERM in the moment of their first ``await`` went on for ever.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["Wakeups"]


class Wakeups:
    """What wakes a loop, in the main thread, until it is closed; nothing if something else does already.

    Parameters
    ----------
    loop
        The loop that runs in this thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bell, self._rope = socket.socketpair()
        for one in (self._bell, self._rope):
            one.setblocking(False)
        self._before = signal.set_wakeup_fd(self._rope.fileno(), warn_on_full_buffer=False)
        try:
            if self._before != -1:
                # That of a loop which has handlers of its own, by `add_signal_handler`.
                signal.set_wakeup_fd(self._before)
            else:
                loop.add_reader(self._bell.fileno(), self._drain)
        except NotImplementedError:  # some loops read no files, and have their own ways
            self.close()

    def _drain(self) -> None:
        # By now the handlers have run.
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)

    def close(self) -> None:
        """Leave the loop, and put back what was there before."""
        if self._before == -1:
            with contextlib.suppress(ValueError):  # a generator that is closed in another thread
                now = signal.set_wakeup_fd(-1)
                if now not in (-1, self._rope.fileno()):
                    # Somebody else's since then.
                    signal.set_wakeup_fd(now)
            with contextlib.suppress(RuntimeError, NotImplementedError):  # the loop is closed
                self._loop.remove_reader(self._bell.fileno())
        self._bell.close()
        self._rope.close()
