"""What an executor is asked to run: one function from bytes to bytes, which every pool can carry."""

from __future__ import annotations

import pickle
import signal

from turnout.runner import Outcome
from turnout.worker import run_batch

__all__ = ["forget_signals_of_the_driver", "run_packed"]


def run_packed(data: bytes) -> bytes:
    """Run a packed batch and return its packed outcomes."""
    body, functions, upstream = pickle.loads(data)
    outcomes: list[Outcome] = []
    run_batch(body, functions, upstream, outcomes.extend)
    return pickle.dumps(outcomes, protocol=5)


def forget_signals_of_the_driver() -> None:
    """Have a worker of a pool pass over Ctrl-C, and end at SIGTERM.

    A terminal sends Ctrl-C to all processes: the worker would end with a traceback. With SIGTERM a pool ends its
    workers; one that was forked while a flow ran has the flow's handler, which would let it live.
    """
    # Not SIG_IGN, which programs that tasks start would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
