"""Batches on their way to Ray: the one remote function, and what is asked of Ray for each of them."""

from __future__ import annotations

import collections
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Final

from turnout._cluster import shown_name
from turnout._serialization import Parcel, SharedParcel
from turnout.errors import RunnerOptionError
from turnout.runner import Batch

from ._cluster import Cluster
from ._orders import Sender, order_of, packed

__all__ = ["Calls", "Sent", "checked_options"]

# What Ray must not do because the engine does it, or would make results unreadable.
_OURS: Final = frozenset({"num_returns", "max_retries", "retry_exceptions"})
_VARIANTS: Final = 1000


class Sent:
    """A batch that Ray has."""

    __slots__ = ("outcomes", "references", "values")

    def __init__(self, outcomes: Any, values: Any, references: Any) -> None:
        self.outcomes = outcomes
        """The reference to its outcomes."""
        self.values = values
        """The reference to its large results, if they may stay."""
        self.references = references
        """What goes beside it; Ray keeps a value only while there is a reference to it."""


class Calls:
    """Makes a Ray task of each batch.

    Parameters
    ----------
    channel, mailbox
        Where the workers tell how it goes.
    cluster
        What there is to run on.
    shipment
        Code that travels along with every batch.
    """

    def __init__(self, channel: str, mailbox: str, cluster: Cluster, shipment: bytes | None) -> None:
        self._sender = Sender(channel, mailbox, self._stored, self._carried, shipment)
        self._cluster = cluster
        # Making a variant costs half as much as sending a task.
        self._variants: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        # Large functions and code, each stored once.
        self._references: dict[bytes, Any] = {}
        # Large arguments, for as long as somebody may send them again.
        self._arguments: weakref.WeakKeyDictionary[SharedParcel, Any] = weakref.WeakKeyDictionary()
        # An argument for nobody, once a node was lost.
        self._marker: tuple[Any, ...] = ()
        self._lock = threading.Lock()

    def check(self, batch: Batch) -> None:
        """Make sure that a batch can be sent.

        Raises
        ------
        RunnerOptionError
            If Ray has no such option, or no node what the batch needs.
        """
        self._variant(batch)

    def send(self, batch: Batch, number: int) -> Sent:
        """Hand a batch to Ray."""
        remote = self._variant(batch)
        order, references = order_of(batch, number, self._sender)
        made = remote.remote(packed(order), *references, *self._marker)
        if batch.may_stay:
            return Sent(made[0], made[1], references)
        return Sent(made, None, references)

    def begin_afresh(self) -> None:
        """Have Ray ask for workers anew for whatever is sent from now on.

        It asks for no more workers than tasks of a kind wait; if those that it asked don't answer, the tasks wait for
        them, new ones too. Tasks with other arguments in its store are of another kind.
        """
        from ._library import ray

        self._marker = (ray.put(b"a node was lost"),)

    def _stored(self, blob: bytes) -> Any:
        from ._library import ray

        with self._lock:
            # A hash of bytes is kept with them, so this is quick.
            if blob not in self._references:
                self._references[blob] = ray.put(blob)
            return self._references[blob]

    def _carried(self, parcel: SharedParcel) -> Any:
        from ._library import ray

        with self._lock:
            if parcel not in self._arguments:
                # Like the results of a Ray task that stay.
                self._arguments[parcel] = ray.put({0: Parcel(parcel.data, parcel.buffers)})
            return self._arguments[parcel]

    def _variant(self, batch: Batch) -> Any:
        name = batch.calls[0].task.name
        given = batch.options.get("ray", {})
        key = (name, batch.may_stay, tuple(batch.resources.items()), _key(given))
        remote = self._variants.get(key)
        if remote is not None:
            return remote
        remote = self._new_variant(batch, name, given)
        with self._lock:
            self._variants[key] = remote
            if len(self._variants) > _VARIANTS:
                self._variants.popitem(last=False)
        return remote

    def _new_variant(self, batch: Batch, name: str, given: Mapping[str, Any]) -> Any:
        options = {"name": shown_name(name), **_as_options(batch.resources), **checked_options(given, name)}
        ours = {"max_retries": 0, "num_returns": 2 if batch.may_stay else 1}
        try:
            remote = _remote_function(batch.may_stay).options(**options, **ours)
        except (TypeError, ValueError) as error:
            raise RunnerOptionError(f"ray_options of task {name!r}: {error}") from error
        self._cluster.check(_wanted(options), name)
        return remote


def checked_options(given: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the options that a task has for Ray, if Ray has them too.

    Raises
    ------
    RunnerOptionError
        If Ray has no option of that name for tasks, or it is not the user's to set.
    """
    known = _known_options()
    for option in given:
        if option in _OURS:
            raise RunnerOptionError(
                f"ray_options of task {task!r}: {option!r} is not yours to set, because Turnout retries and collects "
                "results itself. Use the task's own retries and crash_retries."
            )
        if known and option not in known:
            raise RunnerOptionError(
                f"ray_options of task {task!r}: Ray has no option {option!r} for tasks. It has "
                f"{', '.join(sorted(name for name in known - _OURS if not name.startswith('_')))}."
            )
    return dict(given)


def _known_options() -> set[str]:
    """Return the names of Ray's options for tasks, or none if this version of Ray keeps them elsewhere."""
    import importlib

    for place in ("ray._common.ray_option_utils", "ray._private.ray_option_utils"):
        try:
            return set(importlib.import_module(place).task_options)
        except (ImportError, AttributeError):
            continue
    return set()


def _as_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Return what a call needs in Ray's words."""
    words = {"cpu": "num_cpus", "gpu": "num_gpus", "memory": "memory"}
    options: dict[str, Any] = {words[name]: amount for name, amount in resources.items() if name in words}
    others = {name: amount for name, amount in resources.items() if name not in words}
    if "memory" in options:
        options["memory"] = int(options["memory"])
    return options | ({"resources": others} if others else {})


def _wanted(options: Mapping[str, Any]) -> dict[str, float]:
    """Return what a node must have, in the words of ``resources``."""
    words = {"num_cpus": "cpu", "num_gpus": "gpu", "memory": "memory"}
    wanted = {word: float(options[name]) for name, word in words.items() if options.get(name)}
    return wanted | {name: float(amount) for name, amount in (options.get("resources") or {}).items()}


def _key(given: Mapping[str, Any]) -> Any:
    # Values such as dictionaries have no hash; their texts tell them apart, save objects at the same place in memory.
    return tuple((name, repr(value)) for name, value in sorted(given.items()))


_remote_functions: Final[dict[bool, Any]] = {}


def _remote_function(may_stay: bool) -> Any:
    """Return the remote function, which is the same for all batches of the process: Ray sends it to workers once."""
    if may_stay not in _remote_functions:
        from ._library import ray
        from ._remote import run, run_and_leave

        _remote_functions[may_stay] = ray.remote(run_and_leave if may_stay else run)
    return _remote_functions[may_stay]
