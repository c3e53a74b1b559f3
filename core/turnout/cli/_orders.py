"""Orders to end that come from outside: Ctrl-C, and SIGTERM, which is treated as Ctrl-C is."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Orders", "noted_orders"]


class Orders:
    """Which order to end came first.

    Whoever runs in this thread when it comes may catch the KeyboardInterrupt, and a task ends as Crashed by it. So what
    has become of the flow does not tell whether it was the user who wanted it to end.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        """The exit status that the order asks for; None while there is none."""
        self._interruptions = 0

    def interrupt(self, number: int, _: object) -> None:
        """End the flow at the first Ctrl-C, and the process at the second, whatever it is doing."""
        self.status = self.status or 128 + number
        self._interruptions += 1
        if self._interruptions > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    def terminate(self, number: int, _: object) -> None:
        """Do as at Ctrl-C, in whatever way that is handled now: asyncio has a way of its own."""
        self.status = self.status or 128 + number
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def noted_orders(*, in_loop: bool) -> Iterator[Orders]:
    """Note orders to end while the block runs.

    Parameters
    ----------
    in_loop
        The block runs an event loop, which cancels its main task at Ctrl-C, if nobody else handles that.
    """
    orders = Orders()
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            # What is ignored, as nohup wants it, or handled by the user's file, stays so.
            if not in_loop and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, orders.interrupt))
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, orders.terminate))
        yield orders
