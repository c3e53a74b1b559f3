"""Large arguments that several calls have: each is packed once, and a runner can carry it once to each worker."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Final

from ._call import Call
from ._future import COMPLETED
from ._locks import PoliteLock
from ._serialization import Parcel, SharedParcel

__all__ = ["LARGE", "SharedArguments", "Use"]

LARGE: Final = 64 * 1024
"""Arguments over this many bytes travel apart from the others, in case that further calls have them."""


# If none of so many is open, others may be; but it is packed again.
_REMEMBERED: Final = 64


class Use:
    """A large argument, as long as batches are under way that have it."""

    __slots__ = ("__weakref__", "calls", "parcel", "value")

    def __init__(self, value: object, parcel: SharedParcel) -> None:
        # Held, so that no other object gets its id.
        self.value = value
        self.parcel = parcel
        self.calls: deque[Call] = deque(maxlen=_REMEMBERED)
        """The last calls that were packed with it."""

    def is_current(self) -> bool:
        """Return whether it can't have changed: a call has it that is not final, and nobody may change it before."""
        while self.calls and self.calls[-1].future._type >= COMPLETED:
            self.calls.pop()
        return bool(self.calls)


class SharedArguments:
    """The large arguments that are under way at one started runner, by identity.

    A batch holds the uses of its calls until it is over; what nobody holds is forgotten.
    """

    def __init__(self) -> None:
        self._lock = PoliteLock()
        self._uses: weakref.WeakValueDictionary[int, Use] = weakref.WeakValueDictionary()

    def __bool__(self) -> bool:
        return bool(self._uses)

    def find(self, value: object, call: Call) -> Use | None:
        """Return the use of an argument that another open call has too, and which is this call's from now on."""
        with self._lock:
            use = self._uses.get(id(value))
            if use is None or not use.is_current():
                return None
            use.calls.append(call)
            return use

    def add(self, value: object, parcel: Parcel, call: Call) -> Use:
        """Take note of an argument that no other call is known to have."""
        with self._lock:
            use = self._uses[id(value)] = Use(value, SharedParcel(parcel.data, parcel.buffers))
            use.calls.append(call)
            return use
