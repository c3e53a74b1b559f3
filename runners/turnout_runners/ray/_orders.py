"""What a Ray task gets and gives back: the one thing that driver and workers have to agree on."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from turnout._serialization import Parcel, SharedParcel
from turnout.runner import Batch, Outcome, OutcomeKind, Stored

__all__ = [
    "LARGE",
    "Left",
    "Order",
    "Placed",
    "Sender",
    "completed",
    "order_of",
    "outcome_of",
    "packed",
    "plain",
    "results",
    "shared",
    "unpacked",
]

LARGE: Final = 64 * 1024
"""From this size on, in bytes, values stay in the object store, and orders leave their buffers there."""

_LARGE_FUNCTION: Final = 16 * 1024

Packed: TypeAlias = "bytes | Order"
Plain: TypeAlias = tuple[Any, ...]


class Placed(NamedTuple):
    """Stands for a value that Ray hands over as an argument of its own."""

    argument: int
    key: int
    """Which of the values in that argument."""


class Left(NamedTuple):
    """Stands for a result that stays in the object store."""

    nbytes: int


class Order(NamedTuple):
    """One batch for one Ray task."""

    number: int
    channel: str
    """Whose batch it is: the address of news about it."""
    mailbox: str
    """The name of the actor that takes news."""
    argv: tuple[str, ...]
    shipment: int | None
    """In which argument the code is that travels along."""
    may_stay: bool
    is_timed: bool
    """Whether its call has a time limit."""
    is_async: bool
    body: Parcel
    functions: Mapping[bytes, bytes | int]
    """Packed functions, or in which argument they are."""
    upstream: Sequence[Any]

    def blobs(self) -> dict[bytes, bytes]:
        """Return the functions that are here."""
        return {digest: blob for digest, blob in self.functions.items() if isinstance(blob, bytes)}


class Sender(NamedTuple):
    """What all orders of one runner have in common."""

    channel: str
    mailbox: str
    stored: Callable[[bytes], Any]
    """Returns a reference to large bytes in the object store, where equal ones are stored once."""
    carried: Callable[[SharedParcel], Any]
    """Returns a reference to a large argument in the object store, where it is put once."""
    shipment: bytes | None
    """Code that travels along."""


def order_of(batch: Batch, number: int, sender: Sender) -> tuple[Order, list[Any]]:
    """Return the order for a batch, and the references that go beside it."""
    references: list[Any] = []

    def placed(reference: Any) -> int:
        if reference not in references:
            references.append(reference)
        return references.index(reference)

    functions = {
        digest: placed(sender.stored(blob)) if len(blob) > _LARGE_FUNCTION else blob
        for digest, blob in batch.functions.items()
    }

    def stands_for(value: Any) -> Any:
        if isinstance(value, Stored):
            return Placed(placed(value.handle[0]), value.handle[1])
        return Placed(placed(sender.carried(value)), 0) if type(value) is SharedParcel else value

    order = Order(
        number=number,
        channel=sender.channel,
        mailbox=sender.mailbox,
        argv=tuple(sys.argv),
        shipment=None if sender.shipment is None else placed(sender.stored(sender.shipment)),
        may_stay=batch.may_stay,
        is_timed=batch.calls[0].task.timeout_seconds is not None,
        is_async=batch.is_async,
        body=batch.body,
        functions=functions,
        upstream=[stands_for(value) for value in batch.upstream],
    )
    return order, references


def packed(order: Order) -> Packed:
    """Return an order as Ray carries it best: small ones as bytes, large ones with their buffers apart."""
    if _size(order) <= LARGE:
        # As plain tuples, which are half as long.
        return pickle.dumps(tuple(order), protocol=5)
    return order


def unpacked(order: Packed) -> Order:
    """Return what :func:`packed` was given."""
    return Order(*pickle.loads(order)) if isinstance(order, bytes) else order


def completed(order: Order, values: Sequence[Any]) -> Order:
    """Return an order with everything in place.

    Parameters
    ----------
    order
        What arrived.
    values
        What Ray made of the references that went beside it.
    """
    functions = {
        digest: bytes(values[blob]) if isinstance(blob, int) else blob for digest, blob in order.functions.items()
    }
    upstream = [
        shared(values[value.argument][value.key] if isinstance(value, Placed) else value) for value in order.upstream
    ]
    return order._replace(body=shared(order.body), functions=functions, upstream=upstream)


def shared(value: Any) -> Any:
    """Return a value as others have it, too: buffers in the object store are shared, and read-only."""
    return SharedParcel(value.data, value.buffers) if isinstance(value, Parcel) else value


def results(parts: int, outcomes: Sequence[Outcome]) -> bytes:
    """Return what a Ray task returns beside the values that stay, as bytes, which Ray carries as they are.

    Parameters
    ----------
    parts
        How many messages about the batch went by way of the mailbox.
    outcomes
        Those that didn't.
    """
    return pickle.dumps((parts, plain(outcomes)), protocol=5)


def plain(outcomes: Sequence[Outcome]) -> list[Plain]:
    """Return outcomes as plain tuples: they are half as long, and unpickled three times as fast."""
    return [(outcome[0], int(outcome[1]), *outcome[2:]) for outcome in outcomes]


def outcome_of(item: Plain) -> Outcome:
    """Return what :func:`plain` was given."""
    return Outcome(item[0], OutcomeKind(item[1]), *item[2:])


def _raw(buffer: Any) -> memoryview:
    return pickle.PickleBuffer(buffer).raw()


def _size(order: Order) -> int:
    parcels = sum(value.nbytes for value in (order.body, *order.upstream) if isinstance(value, Parcel))
    return parcels + sum(len(blob) for blob in order.functions.values() if isinstance(blob, bytes))
