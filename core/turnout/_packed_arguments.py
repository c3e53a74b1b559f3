"""The arguments of calls on their way out: small values as they are, what is large or comes from other calls apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from ._arguments import PLAIN, Placeholder, quote, replace_arguments
from ._call import Call
from ._failures import TravellingFailure, encode
from ._future import COMPLETED, TaskFuture
from ._reused import key_if_used_before
from ._serialization import Parcel, dumps, explain, is_plain
from ._shared import LARGE, SharedArguments, Use
from ._state import StateType
from .errors import SerializationError
from .runner import Coming, Stored, TaskRunner

__all__ = ["Arguments", "PackedArguments", "Places"]

# Fewer bytes than this are not worth noting.
_NOTED: Final = 4096

Arguments: TypeAlias = "Parcel | tuple[tuple[Any, ...], dict[str, Any]]"
Places: TypeAlias = tuple[tuple[int | str, int], ...]


class PackedArguments:
    """The arguments of one batch, and what goes beside them.

    Hot path, as in :mod:`turnout._packing`.

    Parameters
    ----------
    coming
        Returns what stands for a future that is not over, or raises LookupError. By default all are.
    shared
        The large arguments that are under way.
    """

    def __init__(
        self, coming: Callable[[TaskFuture[Any]], Coming] | None, shared: SharedArguments | None = None
    ) -> None:
        self.upstream: list[Any] = []
        self.inside: dict[TaskFuture[Any], int] = {}
        """The calls of the batch so far, by their futures."""
        self.uses: dict[int, Use] = {}
        """The large arguments, by where they are in the upstream."""
        self.keys: dict[int, bytes] = {}
        """What large values go by that ``read_only`` calls have, by where they are in the upstream."""
        self.sizes: dict[Call, int] = {}
        """How many bytes calls bring of their own, if that is worth noting."""
        self.nbytes = 0
        """How many that is together."""
        self._coming = coming
        self._shared = shared
        self._place_of: dict[int, Placeholder] = {}
        # What travels apart for read-only calls, which may have the same objects.
        self._read_only: dict[TaskFuture[Any], Placeholder] = {}

    def independent(self, call: Call) -> Arguments:
        """Return arguments without any futures.

        Raises
        ------
        SerializationError
            If one of them can't be pickled.
        """
        args, kwargs = call.args, call.kwargs
        for value in args:
            if not is_plain(value):
                break
        else:
            if not kwargs or all(map(is_plain, kwargs.values())):
                return args, kwargs
        return self._dumped(call, args, kwargs)

    def dependent(self, call: Call) -> tuple[Arguments, Places]:
        """Return arguments among which are futures, and which of them travel apart."""
        args, kwargs = call.args, call.kwargs
        # Most are small values, or futures that stand by themselves, of calls in this batch or of small values.
        placed: list[Any] = []
        places: list[tuple[int | str, int]] = []
        if not kwargs:
            inside = self.inside
            for value in args:
                if type(value) is TaskFuture:
                    if value._type < COMPLETED:
                        number = inside.get(value)
                        if number is None:
                            break
                        places.append((len(placed), -1 - number))
                        placed.append(None)
                    elif is_plain(value._data):
                        placed.append(value._data)
                    else:
                        break
                elif is_plain(value):
                    placed.append(value)
                else:
                    break
            else:
                return (tuple(placed), kwargs), tuple(places)
        return self._anyhow(call)

    def _anyhow(self, call: Call) -> tuple[Arguments, Places]:
        args, kwargs = call.args, call.kwargs
        place = self._placer(call)
        places: list[tuple[int | str, int]] = []
        placed = _plainly_placed(list(enumerate(args)), place, places)
        named = _plainly_placed(list(kwargs.items()), place, places) if placed is not None else None
        if placed is not None and named is not None:
            return (tuple(placed), dict(zip(kwargs, named, strict=True))), tuple(places)
        args, kwargs = replace_arguments(args, kwargs, place)
        return self._dumped(call, args, kwargs), ()

    def _dumped(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parcel:
        """Return packed arguments, with placeholders for large ones that others have too, or may have."""
        found = False
        if self._shared:
            args, kwargs, found = self._apart(call, args, kwargs, self._known)
        parcel = _dumped_arguments(call, args, kwargs)
        size = parcel.nbytes
        if size > LARGE and self._shared is not None:
            packed = {id(value): dumps(value) for value in _own(call, args, kwargs)}
            large = {key: part for key, part in packed.items() if part.nbytes > LARGE}
            # What is in two of them would be two objects on the worker.
            if large and sum(part.nbytes for part in packed.values()) <= size + LARGE:
                args, kwargs, _ = self._apart(call, args, kwargs, lambda value, call: self._new(value, call, large))
                parcel = _dumped_arguments(call, args, kwargs)
        if found or size > _NOTED:
            self.sizes[call] = size
            self.nbytes += size
        return parcel

    def _apart(
        self,
        call: Call,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        use_of: Callable[[object, Call], Use | None],
    ) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
        """Return arguments with placeholders for those that have a use, and whether there are any."""
        places: dict[int, Placeholder] = {}
        for value in _own(call, args, kwargs):
            use = use_of(value, call)
            if use is not None:
                places[id(value)] = self._place(use, call)
        if not places:
            return args, kwargs, False
        placed = tuple([places.get(id(value), value) for value in args])
        return placed, {name: places.get(id(value), value) for name, value in kwargs.items()}, True

    def _known(self, value: object, call: Call) -> Use | None:
        return None if self._shared is None else self._shared.find(value, call)

    def _new(self, value: object, call: Call, large: Mapping[int, Parcel]) -> Use | None:
        parcel = large.get(id(value))
        return None if parcel is None or self._shared is None else self._shared.add(value, parcel, call)

    def _place(self, use: Use, call: Call) -> Placeholder:
        place = self._place_of.get(id(use))
        if place is None:
            place = self._place_of[id(use)] = Placeholder(len(self.upstream))
            self.uses[place.index] = use
            self.upstream.append(use.parcel)
        if call.task.read_only:
            self._note_key(place.index, use.parcel)
        return place

    def _note_key(self, index: int, value: object) -> None:
        if isinstance(value, (Parcel, Stored)) and value.nbytes > LARGE:
            key = key_if_used_before(value)
            if key is not None:
                self.keys[index] = key

    def _placer(self, call: Call) -> Callable[[TaskFuture[Any], bool], Any]:
        """Return what stands in for futures: small results themselves, placeholders for what travels beside.

        Placeholders for what earlier calls of the batch return have negative numbers, -1 for the first.
        """
        upstream, inside, runner, coming = self.upstream, self.inside, call.dispatcher.runner, self._coming
        is_read_only = call.task.read_only
        # Others get entries of their own: what one unpacks and changes, another of the batch must not see.
        places = self._read_only if is_read_only else {}

        def place(future: TaskFuture[Any], allowed: bool) -> Any:
            # It may be over by the time that it is looked at again; then there is nothing to come.
            is_over = future._type >= COMPLETED
            if not is_over and future in inside:
                return Placeholder(-1 - inside[future])
            is_over = is_over or coming is None
            value = future._data
            if is_over and type(value) in PLAIN:
                return value
            found = places.get(future)
            if found is None:
                item = _parcelled(future, value, runner) if is_over or coming is None else coming(future)
                found = places[future] = Placeholder(len(upstream))
                upstream.append(item)
            if is_read_only:
                self._note_key(found.index, upstream[found.index])
            return found

        return place


def _own(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[object]:
    """Yield those arguments that are the caller's objects, and may be large."""
    originals = {id(value.value if type(value) is quote else value) for value in (*call.args, *call.kwargs.values())}
    for value in (*args, *kwargs.values()):
        if not is_plain(value) and id(value) in originals:
            yield value


def _plainly_placed(
    arguments: Sequence[tuple[int | str, Any]],
    place: Callable[[TaskFuture[Any], bool], Any],
    places: list[tuple[int | str, int]],
) -> list[Any] | None:
    """Return plain arguments, with None for those that travel apart, which are noted; None if some are not plain."""
    placed = []
    for where, value in arguments:
        if type(value) is TaskFuture:
            item = place(value, False)
            if type(item) is Placeholder:
                places.append((where, item.index))
                item = None
            placed.append(item)
        elif is_plain(value):
            placed.append(value)
        else:
            return None
    return placed


def _dumped_arguments(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parcel:
    try:
        return dumps((args, kwargs))
    except Exception as error:
        raise _explained(call, args, kwargs, error) from error


def _parcelled(future: TaskFuture[Any], value: Any, runner: TaskRunner | None) -> Parcel | Stored | TravellingFailure:
    if future._type > StateType.CACHED:
        return TravellingFailure(encode(future._error(), f"task {future.name!r}"))
    if type(value) is Stored:
        # From worker to worker, if it stays with its runner; else by way of the driver.
        return value if value.runner is runner and value.handle is not None else future._fetched(value)
    return value if type(value) is Parcel else _dumped(future, value)


def _dumped(future: TaskFuture[Any], value: Any) -> Parcel:
    try:
        return dumps(value)
    except Exception as error:
        raise explain(value, error, f"The result of task {future.name!r}, which is an argument,", "result") from error


def _explained(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> SerializationError:
    """Return an error that names the parameter which can't be pickled."""
    for name, value in call.task.named_arguments(args, kwargs):
        try:
            dumps(value)
        except Exception as own:
            return explain(value, own, f"The parameter {name!r} of task {call.future.name!r}", name)
    return explain((args, kwargs), error, f"The arguments of task {call.future.name!r} together", "arguments")
