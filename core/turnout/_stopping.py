"""Stopping bodies that run in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ._call import Call
from ._stop import Stop, send, take_back
from ._waiting import LOCK

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["body_ended", "came_late", "end_from_outside", "interrupt", "stop_body"]


# Threads to which Stop was sent. It may not have arrived when the body ends.
_interrupted: Final[set[int]] = set()


def stop_body(call: Call) -> None:
    """Stop the body of a call whose outcome nobody wants any more, as far as its runner can."""
    trouble = call.trouble
    if trouble is not None and trouble.stop is not None:
        trouble.stop()
        return
    with LOCK:
        # A runner in this process may say that its bodies are not to be stopped.
        if call.thread and call.dispatcher.can_stop:
            _interrupted.add(call.thread)
            send(call.thread, Stop)
            call.thread = 0
    call.dispatcher.abandon(call)


def came_late(call: Call) -> Sequence[Call]:
    """End an attempt that nobody waits for, and see to it that no Stop arrives after it."""
    thread = threading.get_ident()
    with LOCK:
        if call.thread == thread:
            call.thread = 0
        if thread in _interrupted:
            _interrupted.discard(thread)
            take_back()
    body_ended(call)
    return ()


def body_ended(call: Call) -> None:
    """Note that the body of a call that was cancelled is over: its flow may be waiting for that."""
    with LOCK:
        call.engine.stopping.discard(call)
    call.engine.emptied()


def interrupt(thread: threading.Thread) -> None:
    """Ask a thread that runs a flow's body, and nothing after it, to stop."""
    if thread.ident is not None and thread.is_alive():
        send(thread.ident, Stop)


def end_from_outside(engine: Engine, thread: int) -> None:
    """Have a flow end that runs in a thread of the user's, because the program ends."""
    # As if its body had asked for the end of the thread, which nobody complains of.
    send(thread, SystemExit)
    engine.cancel_all()
