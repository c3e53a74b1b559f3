"""Calls on their way out of the driver: a batch in which everything is packed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ._arguments import PLAIN, Placeholder, replace_arguments
from ._call import Call
from ._context import current_tags, registered_values
from ._failures import TravellingFailure, encode
from ._forwarding import log_levels
from ._future import COMPLETED, TaskFuture, brief
from ._scripts import are_scripts_by_value
from ._serialization import Parcel, dumps, explain, is_plain, pack_function
from ._shipment import FlowInfo, JobRow, Kind, Shipment, this_process
from ._state import StateType
from .errors import SerializationError
from .runner import Batch, Coming, Outcome, Stored, TaskRunner

if TYPE_CHECKING:
    from ._scopes import FlowScope

__all__ = ["PackedBatch", "PackedFunctions", "pack"]

_NO_TAGS: Final[frozenset[str]] = frozenset()


class PackedBatch(Batch):
    """A batch for a worker in another process."""

    __slots__ = (
        "ahead",
        "attempts",
        "body",
        "calls",
        "functions",
        "is_aside",
        "is_async",
        "is_over",
        "is_recalled",
        "left",
        "may_stay",
        "options",
        "resources",
        "seq",
        "upstream",
    )

    def __init__(
        self, calls: Sequence[Call], body: Parcel, functions: Mapping[bytes, bytes], upstream: Sequence[Any]
    ) -> None:
        self.calls = calls
        self.seq = calls[0].seq
        self.is_async = calls[0].task.is_async
        # It takes none of the runner's slots.
        self.is_aside = False
        self.body = body
        self.functions = functions
        self.upstream = upstream
        self.may_stay = all(call.task.crash_retries for call in calls)
        # Calls of tasks that have any travel alone.
        self.resources = calls[0].task.resources
        self.options = calls[0].task.runner_options
        # Outcomes of these attempts are wanted; what comes of earlier ones is too late.
        self.attempts = [call.attempt for call in calls]
        # Which calls have no last outcome yet.
        self.left = set(range(len(calls)))
        # Those of them whose turn has not come, for they need what others of the batch return; and what came of them.
        self.ahead: dict[Call, Outcome | None] = {}
        # Whether the runner was told to give back what has not begun.
        self.is_recalled = False
        # Whether it has given up its place in the window.
        self.is_over = False


class PackedFunctions:
    """Functions as they were when a flow first sent them, each packed once for the flow and its subflows."""

    def __init__(self) -> None:
        # The functions are held too: the id of one that is gone may come again. For a cluster, those of a script go by
        # value, and for other runners of the same flow by name.
        self._packed: dict[tuple[int, bool], tuple[Callable[..., Any], bytes, bytes]] = {}

    def of(self, call: Call) -> tuple[bytes, bytes]:
        """Return digest and blob of a call's function.

        Raises
        ------
        SerializationError
            If the function can't be pickled.
        """
        function = call.task.fn
        key = id(function), are_scripts_by_value()
        packed = self._packed.get(key)
        if packed is None:
            try:
                packed = (function, *pack_function(function))
            except Exception as error:
                what = f"The function of task {call.future.name!r}"
                raise explain(function, error, what, call.task.name) from error
            self._packed[key] = packed
        return packed[1], packed[2]


def pack(
    calls: Sequence[Call],
    refuse: Callable[[Call, Exception], None],
    coming: Callable[[TaskFuture[Any]], Coming] | None = None,
    patience: float = 0.0,
) -> PackedBatch | None:
    """Pack calls as one batch.

    Parameters
    ----------
    calls
        The calls, in order of submission, whose dependencies are over or before them.
    refuse
        Called with each call that can't be packed, and the reason; the others go without it.
    coming
        Returns what stands for a future that is not over. By default all are.
    patience
        After how many seconds a batch of several gives back what has not begun.

    Returns
    -------
    PackedBatch or None
        None if no call is left.
    """
    packing = _Packing(coming)
    packed: list[Call] = []
    for call in calls:
        if call.future._type >= COMPLETED:
            # What it needs could not be packed.
            continue
        try:
            packing.add(call, len(packed))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            refuse(call, error if isinstance(error, Exception) else _ended(call, error))
        else:
            packed.append(call)
    if not packed:
        return None
    return PackedBatch(packed, packing.body(patience), packing.functions, packing.upstream)


def _ended(call: Call, error: BaseException) -> SerializationError:
    refusal = SerializationError(f"Task {call.future.name!r} can't be packed: {brief(error)} was raised on the way.")
    refusal.__cause__ = error
    return refusal


class _Packing:
    """A batch that is being packed.

    Hot path, and written out long for it: a tiny call takes 2.5 µs here, one with three futures 6; with a function for
    each step it took 3.8 and 9 (medians of nine).
    """

    def __init__(self, coming: Callable[[TaskFuture[Any]], Coming] | None) -> None:
        self.functions: dict[bytes, bytes] = {}
        self.upstream: list[Any] = []
        self.inside: dict[TaskFuture[Any], int] = {}
        self._coming = coming
        self._rows: list[JobRow] = []
        self._kinds: dict[Kind, int] = {}
        # By ids of what calls hold: a kind is not made anew for each of them.
        self._kind_of: dict[tuple[int, int, int, frozenset[str]], int] = {}
        self._flows: dict[int, tuple[int, FlowInfo]] = {}

    def add(self, call: Call, index: int) -> None:
        """Add a call as the one with this index.

        Raises
        ------
        SerializationError
            If its function, an argument or a variable can't be pickled.
        """
        kind = self._kind(call)
        needs: tuple[int, ...] = ()
        places: tuple[tuple[int | str, int], ...] = ()
        arguments: Parcel | tuple[tuple[Any, ...], dict[str, Any]]
        if call.dependencies is None:
            arguments = self._independent(call)
        else:
            arguments, places = self._dependent(call)
            if self.inside:
                needs = tuple([self.inside[future] for future in call.dependencies if future in self.inside])
        future = call.future
        self._rows.append(
            (kind, future._index, call.attempt, arguments, places, needs, future._name, _variables(call)),
        )
        self.inside[future] = index

    def body(self, patience: float) -> Parcel:
        """Return everything packed, save for functions and what comes from upstream."""
        flows = tuple(info for _, info in self._flows.values())
        shipment = Shipment(tuple(self._kinds), tuple(self._rows), flows, log_levels(), this_process(), patience)
        # No need for cloudpickle: what is not plain is packed already.
        buffers: list[pickle.PickleBuffer] = []
        return Parcel(pickle.dumps(shipment, 5, buffer_callback=buffers.append), tuple(buffers))

    def _kind(self, call: Call) -> int:
        task, engine = call.task, call.engine
        tags = call.context.get(current_tags, _NO_TAGS)
        key = id(task), id(call.scope), id(engine), tags
        kind = self._kind_of.get(key)
        if kind is None:
            digest, blob = engine.backends.functions.of(call)
            self.functions[digest] = blob
            run = engine.flow_run
            flow = self._flows.setdefault(id(run), (len(self._flows), _info(run, engine.run_id)))[0]
            scope = call.scope
            made = Kind(
                function=digest,
                flow=flow,
                task_name=task.name,
                prefix=scope.prefix,
                path=scope.path,
                tags=task.tags | tags,
                log_prints=call.log_prints,
                is_async=task.is_async,
                read_only=task.read_only,
            )
            kind = self._kind_of[key] = self._kinds.setdefault(made, len(self._kinds))
        return kind

    def _independent(self, call: Call) -> Parcel | tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = call.args, call.kwargs
        for value in args:
            if not is_plain(value):
                break
        else:
            if not kwargs or all(map(is_plain, kwargs.values())):
                return args, kwargs
        return _dumped_arguments(call, args, kwargs)

    def _dependent(
        self, call: Call
    ) -> tuple[Parcel | tuple[tuple[Any, ...], dict[str, Any]], tuple[tuple[int | str, int], ...]]:
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

    def _anyhow(
        self, call: Call
    ) -> tuple[Parcel | tuple[tuple[Any, ...], dict[str, Any]], tuple[tuple[int | str, int], ...]]:
        args, kwargs = call.args, call.kwargs
        place = _placer(self.upstream, self.inside, call.dispatcher.runner, self._coming)
        places: list[tuple[int | str, int]] = []
        placed = _plainly_placed(list(enumerate(args)), place, places)
        named = _plainly_placed(list(kwargs.items()), place, places) if placed is not None else None
        if placed is not None and named is not None:
            return (tuple(placed), dict(zip(kwargs, named, strict=True))), tuple(places)
        args, kwargs = replace_arguments(args, kwargs, place)
        return _dumped_arguments(call, args, kwargs), ()


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


def _info(run: FlowScope, run_id: str) -> FlowInfo:
    return FlowInfo(run.id, run.name, run.flow_name, run_id, run.log_prints)


def _dumped_arguments(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Parcel:
    try:
        return dumps((args, kwargs))
    except Exception as error:
        raise _explained(call, args, kwargs, error) from error


def _placer(
    upstream: list[Any],
    inside: Mapping[TaskFuture[Any], int],
    runner: TaskRunner | None,
    coming: Callable[[TaskFuture[Any]], Coming] | None,
) -> Callable[[TaskFuture[Any], bool], Any]:
    """Return what stands in for futures: small results themselves, placeholders for what travels beside.

    Placeholders for what earlier calls of the batch return have negative numbers, -1 for the first.
    """
    places: dict[TaskFuture[Any], Placeholder] = {}

    def place(future: TaskFuture[Any], allowed: bool) -> Any:
        # It may be over by the time that it is looked at again; then there is nothing to come.
        is_over = future._type >= COMPLETED
        if not is_over and future in inside:
            return Placeholder(-1 - inside[future])
        is_over = is_over or coming is None
        value = future._data
        if is_over and type(value) in PLAIN:
            return value
        if future not in places:
            item = _parcelled(future, value, runner) if is_over or coming is None else coming(future)
            # Each call gets entries of its own: what one unpacks and changes, another of the batch must not see.
            places[future] = Placeholder(len(upstream))
            upstream.append(item)
        return places[future]

    return place


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


def _variables(call: Call) -> Parcel | None:
    values = registered_values(call.context)
    if not values:
        return None
    try:
        return dumps(values)
    except Exception as error:
        what = f"A context variable that travels with task {call.future.name!r}"
        raise explain(values, error, what, "variables") from error
