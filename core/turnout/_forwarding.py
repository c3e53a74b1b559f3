"""What a worker says besides its outcomes, on its way to the driver: log records and warnings."""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final, TextIO

from ._locks import free_in_forks
from ._serialization import found_at, pack_function, reference_of

__all__ = ["forwarding", "log_levels", "receive"]

# Loggers whose levels in the driver decide what is worth sending.
_LEVELLED: Final = ("", "turnout", "turnout.flow_runs", "turnout.task_runs")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

Send = Callable[[tuple[Any, ...]], None]


def log_levels() -> tuple[int, ...]:
    """Return the levels set in this process, for workers to use."""
    return tuple(logging.getLogger(name).level for name in _LEVELLED)


@contextlib.contextmanager
def forwarding(levels: tuple[int, ...], send: Send) -> Iterator[None]:
    """Send records and warnings of this process to the driver instead of to this process's own handlers.

    Batches may be under way side by side; what belongs to none of them goes the way of the one that began last.
    """
    with _lock:
        _senders.append(send)
        if len(_senders) == 1:
            _replaced.enter_context(_replace_outlets(levels))
    try:
        yield
    finally:
        with _lock:
            _senders.remove(send)
            if not _senders:
                _replaced.close()


_lock: Final = free_in_forks(threading.Lock())
_senders: Final[list[Send]] = []
_replaced: Final = contextlib.ExitStack()


def _send(message: tuple[Any, ...]) -> None:
    if senders := _senders[-1:]:
        senders[0](message)


@contextlib.contextmanager
def _replace_outlets(levels: tuple[int, ...]) -> Iterator[None]:
    root = logging.getLogger()
    handlers, before = root.handlers, log_levels()
    show = warnings.showwarning
    _set_levels(levels)
    # A forked worker has the driver's handlers; a record must not be handled twice.
    root.handlers = [_Forwarder()]
    warnings.showwarning = _send_warning
    try:
        yield
    finally:
        root.handlers = handlers
        warnings.showwarning = show
        _set_levels(before)


def _set_levels(levels: tuple[int, ...]) -> None:
    for name, level in zip(_LEVELLED, levels, strict=True):
        logging.getLogger(name).setLevel(level)


class _Forwarder(logging.Handler):
    """Sends each record as a dictionary of plain values."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _send(("log", _flat(record)))
        except Exception:
            self.handleError(record)


def _flat(record: logging.LogRecord) -> dict[str, Any]:
    """Return a record in values that surely pickle; the message and the traceback are made here, as text."""
    flat = {name: value for name, value in vars(record).items() if _is_plain(value)}
    flat.update(msg=record.getMessage(), args=None, exc_info=None)
    if record.exc_info and record.exc_info[0] is not None:
        flat["exc_text"] = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
    for name, value in vars(record).items():
        if name not in flat and name not in _STANDARD:
            flat[name] = repr(value)
    return flat


def _is_plain(value: object) -> bool:
    return value is None or type(value) in (str, int, float, bool)


def _send_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # A class that the driver can't import travels by value, and arrives as the driver's own if it came from there.
    place = reference_of(category) or pack_function(category)[1]
    _send(("warning", str(message), place, filename, lineno))


def receive(message: tuple[Any, ...]) -> None:
    """Do in the driver what a worker's message asks for."""
    kind = message[0]
    if kind == "log":
        record = logging.makeLogRecord(message[1])
        target = logging.getLogger(record.name)
        if target.isEnabledFor(record.levelno):
            target.handle(record)
    elif kind == "warning":
        _warn(*message[1:])
    else:
        _write(kind, message[1])


def _warn(text: str, place: tuple[str, str] | bytes, filename: str, lineno: int) -> None:
    category = _category(place)
    try:
        # Filters were applied on the worker. Here the driver's decide again, which may turn a warning into an error.
        warnings.warn_explicit(text, category, filename, lineno)
    except Warning as error:
        name = category.__name__
        logging.getLogger("turnout").warning("A task warned: %s: %s (%s:%d)", name, error, filename, lineno)


def _category(place: tuple[str, str] | bytes) -> type[Warning]:
    try:
        return pickle.loads(place) if isinstance(place, bytes) else found_at(*place)  # type: ignore[no-any-return]
    except Exception:  # code that only the worker has
        return UserWarning


def _write(stream: str, text: str) -> None:
    target = sys.stderr if stream == "stderr" else sys.stdout
    if target is not None:
        with contextlib.suppress(OSError, ValueError):  # closed, or a broken pipe: nobody is there to read
            try:
                target.write(text)
            except UnicodeEncodeError:
                # The body has gone on, and the lines beside it are not to blame.
                encoding = getattr(target, "encoding", None) or "utf-8"
                target.write(text.encode(encoding, "backslashreplace").decode(encoding))
            target.flush()
