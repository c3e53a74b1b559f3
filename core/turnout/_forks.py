"""Bodies that fork: the new process runs on in the body, and ends where it would come back from it."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

__all__ = ["call_in_child", "end_in_child", "generation"]

generation = 0
"""How many forks lie between the first process and this one. Asking the system for the process costs more."""


def _count() -> None:
    global generation
    generation += 1


def call_in_child(function: Callable[[], object]) -> None:
    """Call a function in every process that is forked from this one from now on, when it begins."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


call_in_child(_count)


def end_in_child(before: int, error: BaseException | None = None) -> None:
    """End this process if a body forked it, with the exit status of a program that ends in the same way.

    What comes after the body is its parent's: outcomes, further calls, the flow itself. A child that went on with that
    would run calls a second time.

    Parameters
    ----------
    before
        What ``generation`` was when the body began.
    error
        What the body raised in this process, None if it returned.
    """
    if generation == before:
        return
    status = 1
    try:
        if error is None:
            status = 0
        elif isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            status = error.code or 0
        elif isinstance(error, SystemExit):
            print(error.code, file=sys.stderr)
        else:
            traceback.print_exception(error)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    finally:
        os._exit(status & 0xFF)
