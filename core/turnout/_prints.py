"""``log_prints=True``: what a body prints goes to its run's logger, in order with its other records."""

from __future__ import annotations

import builtins
import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from ._context import current_scope, get_run_logger
from ._locks import free_in_forks

__all__ = ["prints_logged"]

_lock: Final = free_in_forks(threading.Lock())
_users = 0
_original: Callable[..., None] = print


@contextlib.contextmanager
def prints_logged() -> Iterator[None]:
    """Send the prints of runs that want it to their loggers, while at least one such run is under way.

    ``print`` belongs to the whole process, so the replacement asks whose it is, and is there only while it is needed.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _users, _original
    with _lock:
        _users += 1
        if _users == 1:
            _original = builtins.print
            builtins.print = _print


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        # Somebody may have replaced it after us, and will put ours back; then ours still finds the original.
        if not _users and builtins.print is _print:
            builtins.print = _original


def _print(*values: Any, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False) -> None:
    scope = current_scope.get()
    if file is not None or scope is None or not scope.log_prints:
        _original(*values, sep=sep, end=end, file=file, flush=flush)
        return
    text = io.StringIO()
    _original(*values, sep=sep, end="", file=text)
    get_run_logger().info("%s", text.getvalue())
