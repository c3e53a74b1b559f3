"""Calls on their way out of the driver: a batch in which everything is packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ._call import Call
from ._context import current_tags, registered_values
from ._forwarding import log_levels
from ._future import COMPLETED, TaskFuture, brief
from ._packed_arguments import Arguments, PackedArguments, Places
from ._scripts import are_scripts_by_value
from ._serialization import Parcel, dumps, explain, pack_function
from ._shared import SharedArguments, Use
from ._shipment import FlowInfo, JobRow, Kind, Shipment, pack_shipment, this_process
from .errors import SerializationError
from .runner import Batch, Coming, Outcome

if TYPE_CHECKING:
    from ._scopes import FlowScope
    from ._trips import Trip

__all__ = ["PackedBatch", "PackedFunctions", "pack"]

_NO_TAGS: Final[frozenset[str]] = frozenset()
# How many bytes of arguments calls of a batch may bring of their own before no more are added.
_MOST_BYTES: Final = 8 << 20


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
        "sizes",
        "trip",
        "upstream",
        "uses",
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
        # The large arguments that others may have too; and how many bytes of arguments each call brought of its own.
        self.uses: Sequence[Use] = ()
        self.sizes: Mapping[Call, int] = {}
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
        # What those are told who listen to events.
        self.trip: Trip | None = None
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
    shared: SharedArguments | None = None,
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
    shared
        The large arguments that are under way.

    Returns
    -------
    PackedBatch or None
        None if no call is left. Calls are left out from the one on for which the batch would get too large.
    """
    arguments = PackedArguments(coming, shared)
    packing = _Packing(arguments)
    packed: list[Call] = []
    for call in calls:
        if arguments.nbytes > _MOST_BYTES:
            break
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
    packing.is_counted = packed[0].engine.tally.submitted is not None
    if packed[0].engine.events.put is not None:
        packing.numbers = tuple([call.seq for call in packed])
    batch = PackedBatch(packed, packing.body(patience), packing.functions, arguments.upstream)
    batch.uses = list(arguments.uses.values())
    batch.sizes = arguments.sizes
    return batch


def _ended(call: Call, error: BaseException) -> SerializationError:
    refusal = SerializationError(f"Task {call.future.name!r} can't be packed: {brief(error)} was raised on the way.")
    refusal.__cause__ = error
    return refusal


class _Packing:
    """A batch that is being packed.

    Hot path, and written out long for it: a tiny call takes 2.5 µs here, one with three futures 6; with a function for
    each step it took 3.8 and 9 (medians of nine).
    """

    def __init__(self, arguments: PackedArguments) -> None:
        self.functions: dict[bytes, bytes] = {}
        self._arguments = arguments
        self._inside = arguments.inside
        self._rows: list[JobRow] = []
        self._kinds: dict[Kind, int] = {}
        # By ids of what calls hold: a kind is not made anew for each of them.
        self._kind_of: dict[tuple[int, int, int, frozenset[str]], int] = {}
        self._flows: dict[int, tuple[int, FlowInfo]] = {}
        self.numbers: tuple[int, ...] | None = None
        self.is_counted = False

    def add(self, call: Call, index: int) -> None:
        """Add a call as the one with this index.

        Raises
        ------
        SerializationError
            If its function, an argument or a variable can't be pickled.
        """
        kind = self._kind(call)
        needs: tuple[int, ...] = ()
        places: Places = ()
        arguments: Arguments
        if call.dependencies is None:
            arguments = self._arguments.independent(call)
        else:
            arguments, places = self._arguments.dependent(call)
            if self._inside:
                needs = tuple([self._inside[future] for future in call.dependencies if future in self._inside])
        future = call.future
        self._rows.append(
            (kind, future._index, call.attempt, arguments, places, needs, future._name, _variables(call)),
        )
        self._inside[future] = index

    def body(self, patience: float) -> Parcel:
        """Return everything packed, save for functions and what comes from upstream."""
        flows = tuple(info for _, info in self._flows.values())
        shared = frozenset(self._arguments.uses) if len(self._rows) > 1 else frozenset()
        shipment = Shipment(
            tuple(self._kinds),
            tuple(self._rows),
            flows,
            log_levels(),
            this_process(),
            patience,
            shared,
            self._arguments.keys,
            self.numbers,
            self.is_counted,
        )
        return pack_shipment(shipment)

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


def _info(run: FlowScope, run_id: str) -> FlowInfo:
    return FlowInfo(run.id, run.name, run.flow_name, run_id, run.log_prints)


def _variables(call: Call) -> Parcel | None:
    values = registered_values(call.context)
    if not values:
        return None
    try:
        return dumps(values)
    except Exception as error:
        what = f"A context variable that travels with task {call.future.name!r}"
        raise explain(values, error, what, "variables") from error
