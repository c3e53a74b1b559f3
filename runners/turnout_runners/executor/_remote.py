"""What an executor is asked to run: one function from bytes to bytes, which every pool can carry."""

from __future__ import annotations

import pickle

from turnout.runner import Outcome
from turnout.worker import run_batch

__all__ = ["run_packed"]


def run_packed(data: bytes) -> bytes:
    """Run a packed batch and return its packed outcomes."""
    body, functions, upstream = pickle.loads(data)
    outcomes: list[Outcome] = []
    run_batch(body, functions, upstream, outcomes.extend)
    return pickle.dumps(outcomes, protocol=5)
