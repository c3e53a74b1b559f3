"""Values that stay in Ray's object store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._orders import shared

if TYPE_CHECKING:
    from turnout._serialization import Parcel
    from turnout.runner import Stored

__all__ = ["fetched"]


def fetched(stored: Stored) -> Parcel:
    """Bring a value to this process, in memory of its own.

    Raises
    ------
    ray.exceptions.RayError
        If it is lost.
    """
    from ._library import ray

    reference, index = stored.handle
    owned: Parcel = shared(ray.get(reference)[index]).owned()
    return owned
