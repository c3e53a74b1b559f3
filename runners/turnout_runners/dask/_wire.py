"""What driver and workers tell each other: batches on their way out, and news of them on the way back."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from turnout._cluster import shown_name
from turnout._serialization import Parcel
from turnout.runner import Outcome, OutcomeKind

__all__ = ["LARGE", "Header", "Kept", "News", "Package", "Place", "Stays", "key_of", "number_of"]

LARGE: Final = 64 * 1024
"""Results over this many bytes stay on the worker that made them; smaller ones come along with the news."""

_DIGITS: Final = 16


class Header(NamedTuple):
    """What a worker has to know of a batch before it unpacks it."""

    topic: str
    """Where the news of it goes."""
    base: str
    """The topic of the whole run, to which all others of it belong."""
    number: int
    key: str
    calls: int
    """How many there are."""
    is_async: bool
    """Whether its calls are coroutines."""
    may_stay: bool
    """Whether results may stay on the worker."""
    origin: tuple[int, str]
    """The process that sent it."""
    journal: str
    """The directory of the workers' journals, where driver and workers share a machine; else nothing."""


class Package(NamedTuple):
    """The batch itself. The scheduler sees it as bytes, and never unpacks what users wrote."""

    body: Parcel
    functions: Mapping[bytes, bytes]
    digests: tuple[bytes, ...]
    """The functions that come as values of Dask, in the order of the first arguments."""
    upstream: Sequence[Any]
    """As in a batch, with a :class:`Place` for what comes as a value of Dask."""


class Place(NamedTuple):
    """Stands for a value that another batch left on a worker."""

    argument: int
    """Which of the values of Dask that come after the functions."""
    call: int
    """Which call of that batch returned it."""


class Stays(NamedTuple):
    """Stands for a result that stays on its worker."""

    nbytes: int


class Kept:
    """The results of a batch as the result of the Dask task: those that stay, and small ones for early batches."""

    __slots__ = ("values",)

    def __init__(self, values: Mapping[int, Any]) -> None:
        self.values = values
        """By call, plain ones as they are, others as parcels."""

    def __sizeof__(self) -> int:
        # Dask spills, and chooses workers, by what it believes that values weigh.
        parcels = (value.nbytes for value in self.values.values() if isinstance(value, Parcel))
        return object.__sizeof__(self) + sum(parcels)

    def __reduce__(self) -> tuple[type[Kept], tuple[Mapping[int, Any]]]:
        return Kept, (self.values,)


class News(NamedTuple):
    """What a worker tells of a batch, in the order in which it happened."""

    topic: str
    number: int
    serial: int
    """Rises with each message about the batch: what comes twice, by way of the journal, is taken once."""
    is_waiting: bool
    """Whether it has given its slot away."""
    outcomes: Sequence[Outcome]

    @classmethod
    def unpacked(cls, data: bytes) -> News:
        """Return what :meth:`packed` packed."""
        topic, number, serial, is_waiting, outcomes = pickle.loads(data)
        return cls(topic, number, serial, is_waiting, [Outcome(o[0], OutcomeKind(o[1]), *o[2:]) for o in outcomes])

    def packed(self) -> bytes:
        """Return news as they travel."""
        # As plain tuples: they are half as long, and unpickled three times as fast.
        plain = [(o[0], int(o[1]), *o[2:]) for o in self.outcomes]
        return pickle.dumps((*self[:-1], plain), protocol=5)


def key_of(name: str, link: str, number: int) -> str:
    """Return the key of a batch: Dask shows what stands before 32 hexadecimal digits, and groups by it.

    Parameters
    ----------
    name
        The name of the task.
    link
        16 hexadecimal digits that nobody else uses.
    number
        The number of the batch.

    Examples
    --------
    >>> key_of("load", "0123456789abcdef", 10)
    'load-0123456789abcdef000000000000000a'
    """
    return f"{sys.intern(shown_name(name))}-{link}{number:0{_DIGITS}x}"


def number_of(key: str) -> int:
    """Return the number of the batch with this key.

    Examples
    --------
    >>> number_of("load-0123456789abcdef000000000000000a")
    10
    """
    return int(key[-_DIGITS:], 16)
