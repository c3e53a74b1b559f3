"""Batches as tasks of Dask: what goes as bytes, what as a value of Dask, and what is said besides."""

from __future__ import annotations

import contextlib
import pickle
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from turnout._serialization import Parcel, SharedParcel
from turnout.runner import Batch, Coming, Stored
from turnout.worker import this_process

from . import _remote
from ._wire import Header, Kept, Package, Place, key_of

__all__ = ["Order", "Orders"]

_GOOD: Final = ("pending", "finished")

# Functions up to this many bytes go along with each batch.
_SMALL_FUNCTION: Final = 4096
# Batches over this many bytes don't pass through the scheduler's graph, where they would stay while they run.
_LARGE_PACKAGE: Final = 8 << 20


class Order(NamedTuple):
    """A batch, packed."""

    batch: Batch
    package: bytes
    values: Sequence[Any]
    """The futures of Dask that go with it: large functions, then results of other batches."""


class Orders:
    """Makes tasks of Dask for one link.

    Parameters
    ----------
    client
        A :class:`distributed.Client`.
    link
        16 hexadecimal digits that only this link uses.
    base
        The topic of the run.
    journal
        The directory of the workers' journals, or nothing.
    is_nested
        Whether the batches come from a worker.
    """

    def __init__(self, client: Any, link: str, base: str, journal: str, *, is_nested: bool) -> None:
        self.topic = f"{base}/{link}"
        self._client = client
        self._link = link
        self._base = base
        self._journal = journal
        self._is_nested = is_nested
        self._functions: dict[bytes, Any] = {}
        # Large arguments, for as long as somebody may send them again.
        self._arguments: weakref.WeakKeyDictionary[SharedParcel, Any] = weakref.WeakKeyDictionary()

    def packed(self, batch: Batch, future_of: Callable[[Batch], Any], *, has_workers: bool) -> Order:
        """Pack a batch.

        Parameters
        ----------
        batch
            The batch.
        future_of
            Returns Dask's future of another batch, which is under way.
        has_workers
            Whether there is a worker now that could take data.
        """
        large = [digest for digest, blob in batch.functions.items() if len(blob) > _SMALL_FUNCTION]
        functions = {digest: blob for digest, blob in batch.functions.items() if digest not in large}
        futures: list[Any] = []
        places: dict[int, int] = {}
        upstream = []
        for value in batch.upstream:
            future, index = None, 0
            if isinstance(value, (Stored, Coming)):
                future, index = value.handle if isinstance(value, Stored) else (future_of(value.batch), value.call)
            elif type(value) is SharedParcel and has_workers:
                future = self._argument(value)
            if future is not None:
                position = places.setdefault(id(future), len(futures))
                if position == len(futures):
                    futures.append(future)
                upstream.append(Place(position, index))
            else:
                upstream.append(value)
        package = Package(batch.body, functions, tuple(large), upstream)
        data = pickle.dumps(tuple(package), protocol=5)
        return Order(batch, data, [*(self._function(digest, batch) for digest in large), *futures])

    def send(self, order: Order, number: int, keywords: Mapping[str, Any], *, has_workers: bool) -> Any:
        """Submit a batch, and return Dask's future.

        Parameters
        ----------
        order
            The batch.
        number
            What it goes by.
        keywords
            For :meth:`distributed.Client.submit`.
        has_workers
            Whether there is a worker now that could take data.
        """
        from dask.base import annotate

        batch = order.batch
        key = key_of(batch.calls[0].task.name, self._link, number)
        header = Header(
            topic=self.topic,
            base=self._base,
            number=number,
            key=key,
            calls=len(batch.calls),
            is_async=batch.is_async,
            may_stay=batch.may_stay,
            origin=this_process(),
            journal=self._journal,
        )
        marks = {"turnout": self._base, "turnout_topic": self.topic, "turnout_once": not batch.may_stay}
        if self._is_nested:
            # What somebody waits for goes before what would only wait, too.
            keywords = {**keywords, "priority": keywords.get("priority", 0) + 1}
        package = self._scattered(order.package) if has_workers else order.package
        # As bytes: Dask replaces texts that look like keys.
        head = pickle.dumps(tuple(header))
        with annotate(**marks):
            return self._client.submit(_remote.run, head, package, *order.values, key=key, pure=False, **keywords)

    def forget(self) -> None:
        """Let go of functions and arguments."""
        self._functions.clear()
        self._arguments.clear()

    def _scattered(self, package: bytes) -> Any:
        """Return a large package as a value of Dask. If that is lost with its worker, Dask says so of the task."""
        if len(package) > _LARGE_PACKAGE:
            with contextlib.suppress(OSError, TimeoutError):
                return self._client.scatter(package, hash=False)
        return package

    def _argument(self, parcel: SharedParcel) -> Any:
        """Return the future of a large argument, which Dask sends to each worker once; None if it could not be sent."""
        future = self._arguments.get(parcel)
        if future is None or future.status not in _GOOD:
            # Like a result that stayed. If it is lost with its worker, it is sent anew to whoever needs it next.
            future, kept = None, Kept({0: Parcel(parcel.data, parcel.buffers)})
            with contextlib.suppress(OSError, TimeoutError):
                future = self._arguments[parcel] = self._client.scatter(kept, hash=False)
        return future

    def _function(self, digest: bytes, batch: Batch) -> Any:
        """Return the future of a large function, which Dask sends to each worker once."""
        future = self._functions.get(digest)
        if future is None or future.status not in _GOOD:
            key = f"function-{self._link}{uuid.uuid4().hex[:16]}"
            future = self._client.submit(_remote.same, batch.functions[digest], key=key, pure=False)
            self._functions[digest] = future
        return future
