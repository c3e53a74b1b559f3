"""What the body of a packed batch holds: what both halves, the driver's and the worker's, have to agree on."""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from ._serialization import Parcel

__all__ = ["FlowInfo", "Job", "JobRow", "Kind", "Shipment", "pack_shipment", "this_process"]


class FlowInfo(NamedTuple):
    """What the calls of one flow run have in common."""

    id: str | None
    name: str | None
    flow_name: str | None
    run_id: str
    log_prints: bool


class Kind(NamedTuple):
    """What the calls of one task in one scope have in common: most of what is to be said of them."""

    function: bytes
    """The digest of the function."""
    flow: int
    """Which of the shipment's flows they belong to."""
    task_name: str
    prefix: str
    """What the names of their runs begin with."""
    path: str
    """The place of their scope below its root flow."""
    tags: frozenset[str]
    log_prints: bool
    is_async: bool
    read_only: bool
    """Whether large arguments may arrive without a copy, read-only."""


class Job(NamedTuple):
    """One call, as it travels."""

    kind: int
    """Which of the shipment's kinds it is of."""
    number: int
    """How many runs of its name were submitted in its scope before."""
    attempt: int
    arguments: Parcel | tuple[tuple[Any, ...], dict[str, Any]]
    """Positional and keyword arguments: as they are if all are plain, else packed."""
    places: tuple[tuple[int | str, int], ...] = ()
    """Arguments, by position or keyword, whose values travel apart, with the index that a placeholder would have."""
    needs: tuple[int, ...] = ()
    """Earlier calls of the same batch that must have returned something."""
    name: str | None = None
    """The name of the run, if it is not made of the kind's and the number."""
    variables: Parcel | None = None
    """The values of registered context variables, if there are any."""


JobRow: TypeAlias = tuple[
    int,
    int,
    int,
    Parcel | tuple[tuple[Any, ...], dict[str, Any]],
    tuple[tuple[int | str, int], ...],
    tuple[int, ...],
    str | None,
    Parcel | None,
]
"""The fields of a :class:`Job`. Plain tuples pickle without calling Python: 1.7 µs less for each, there and back."""


class Shipment(NamedTuple):
    """What the body of a packed batch holds."""

    kinds: tuple[Kind, ...]
    jobs: tuple[JobRow, ...]
    flows: tuple[FlowInfo, ...]
    levels: tuple[int, ...]
    """The levels of the driver's loggers."""
    origin: tuple[int, str]
    """The driver's process."""
    patience: float
    """After how many seconds a batch of several gives back what has not begun."""
    shared: frozenset[int]
    """Which values that travel apart several calls have."""
    keys: Mapping[int, bytes]
    """By what those go, if they may be kept for further calls."""
    numbers: tuple[int, ...] | None = None
    """What the calls go by in events; None if nobody listens."""
    is_counted: bool = False
    """Whether somebody wants to know how many calls they submit."""


def pack_shipment(shipment: Shipment) -> Parcel:
    """Return a shipment as it travels, with the large buffers of its arguments beside it."""
    # No need for cloudpickle: what is not plain is packed already.
    buffers: list[pickle.PickleBuffer] = []
    return Parcel(pickle.dumps(shipment, 5, buffer_callback=buffers.append), tuple(buffers))


# A fork has its parent's token and another id; another host may have the same id, with another token.
_TOKEN: Final = uuid.uuid4().hex


def this_process() -> tuple[int, str]:
    """Return what tells this process from every other."""
    return os.getpid(), _TOKEN
