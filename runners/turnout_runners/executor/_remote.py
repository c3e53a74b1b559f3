"""What an executor is asked to run: one function from bytes to bytes, which every pool can carry."""

from __future__ import annotations

import pickle
import signal

from turnout.runner import Outcome
from turnout.worker import run_batch

__all__ = ["leave_ctrl_c_to_the_driver", "run_packed"]


def run_packed(data: bytes) -> bytes:
    """Run a packed batch and return its packed outcomes."""
    body, functions, upstream = pickle.loads(data)
    outcomes: list[Outcome] = []
    run_batch(body, functions, upstream, outcomes.extend)
    return pickle.dumps(outcomes, protocol=5)


def leave_ctrl_c_to_the_driver() -> None:
    """Have a worker of a pool pass over Ctrl-C, which a terminal sends to all: it would end with a traceback."""
    # Not SIG_IGN, which programs that tasks start would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
