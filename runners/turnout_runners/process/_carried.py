"""Large arguments that several calls have: written into shared memory once, for all workers."""

from __future__ import annotations

import contextlib
import pickle
import weakref
from typing import Any, Final

from turnout._serialization import Parcel, SharedParcel

from . import _memory

__all__ = ["carried"]

# For as long as somebody may send them again.
_written: Final[weakref.WeakKeyDictionary[SharedParcel, Parcel]] = weakref.WeakKeyDictionary()


def carried(value: Any) -> Any:
    """Return one of ``Batch.upstream`` as it is sent: a new parcel of each, and shared ones over shared memory."""
    if type(value) is SharedParcel:
        parcel = _written.get(value)
        if parcel is None:
            parcel = value
            # With no room left for it, each message carries it by itself, or fails and says so.
            with contextlib.suppress(OSError):
                parcel = _written[value] = _in_shared_memory(value)
        value = parcel
    # One that is needed twice arrives as two, so that calls of one batch don't share what they may change.
    return Parcel(value.data, value.buffers) if isinstance(value, Parcel) else value


def _in_shared_memory(parcel: Parcel) -> Parcel:
    data, *buffers = _memory.shared([pickle.PickleBuffer(part).raw() for part in (parcel.data, *parcel.buffers)])
    return Parcel(data, tuple(buffers))
