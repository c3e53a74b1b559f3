"""What is logged, as events: noted where a record is made, so that no logger or handler is touched."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from ._context import current_scope
from ._event_stream import EVENT, STREAM
from ._places import host_and_process

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["note_logs"]

_OWN = "turnout"


class _Noting:
    """Makes records as before, and tells of them while somebody listens."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self.make = make

    def __call__(self, name: Any, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.make(name, *args, **kwargs)
        # What a worker logged has no name yet when it is made again here; it is told where it arrives.
        if STREAM.put is not None and isinstance(name, str):
            # A message that can't be made is for logging to complain about.
            with contextlib.suppress(Exception):
                _tell(record)
        return record


def _tell(record: logging.LogRecord) -> None:
    scope, put = current_scope.get(), STREAM.put
    if put is None or (scope is None and record.name.partition(".")[0] != _OWN):
        return
    from .events import LogRecord

    flow = number = None
    if scope is not None:
        flow, number = scope.describe().flow_run_id, scope.number
        if number is not None and number < 0:
            # A worker that is in this process.
            number = -1 - number
    host, pid = host_and_process()
    told = LogRecord(record.created, record.levelname, record.name, record.getMessage(), flow, number, f"{host}:{pid}")
    put((EVENT, told))


def note_logs(on: bool) -> None:
    """Begin or end to tell what is logged.

    Whoever wraps the factory of records after us keeps ours, which then does nothing while nobody listens.
    """
    made_by = logging.getLogRecordFactory()
    if on and not isinstance(made_by, _Noting):
        logging.setLogRecordFactory(_Noting(made_by))
    elif not on and isinstance(made_by, _Noting):
        logging.setLogRecordFactory(made_by.make)
