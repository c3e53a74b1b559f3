"""The contract between Turnout and whatever runs its calls: all that the author of a runner has to know.

A runner knows nothing of order, retries, states or futures; the engine does. It starts a backend, says how many calls
fit, takes batches without blocking, and tells what became of them. Point ``turnout conform`` at a new runner to see
whether it keeps this contract.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

from ._machine import usable_memory, usable_processors
from ._secrets import secrets_in, without_secrets
from .errors import RunnerOptionError, RunnerStoppedError

if TYPE_CHECKING:
    from ._call import Call
    from ._serialization import Parcel

__all__ = [
    "DEFAULT_BATCH_SECONDS",
    "Batch",
    "Capabilities",
    "Host",
    "Outcome",
    "OutcomeKind",
    "Plan",
    "Stored",
    "TaskRunner",
    "check_batch_seconds",
    "check_count",
    "usable_memory",
    "usable_processors",
]

DEFAULT_BATCH_SECONDS: Final = 0.02
"""How much work, in seconds, calls may be that travel together, unless the user says otherwise."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a runner can and can't do; the conformance kit holds it to its word.

    Parameters
    ----------
    in_process
        Calls share the driver's memory: nothing is pickled, and the runner calls ``host.execute(batch)``.
    inline
        ``submit`` runs the batch before it returns. The engine never calls it from a thread that must not wait.
    keeps_order
        Takes any number of batches at once and starts them in order of ``seq``. Other runners get no more than fit, and
        the engine keeps the queue.
    cancel
        What happens to the body of a running call that is cancelled or out of time: ``"none"`` (it runs on and keeps
        its slot), ``"cooperative"`` (it is asked to stop; Python code stops, C code runs on), ``"kill"`` (it stops).
    frees_slot
        A call that ran out of time gives its slot to others at once, even if its body can't be stopped.
    isolates_crashes
        A dying worker takes no other call with it, nor does it make others run twice.
    async_aside
        Batches of async calls (``Batch.is_async``) take no slot: any number of them wait side by side. Elsewhere an
        async call takes a slot as others do, save in this process, where the engine has an event loop for them.
    keeps_results
        Finished results survive the worker that made them. Elsewhere a large one that stayed there (see
        ``Batch.may_stay``) is made again, by running its call again.
    at_most_once
        With ``crash_retries=0`` no call ever begins twice.
    nested
        Where calls submitted by a task run: on the same runner (``"shared"``) or in the task's worker
        (``"in_place"``).
    explains_crashes
        The cause of a crash names the signal or exit code that ended the worker; elsewhere, no more than the worker.
    streams
        Log records, prints and the start of a call are told while the batch runs, not at its end.
    latency
        About how many seconds a worker would wait for its next batch if that were sent when the one before is over.
        Calls that go alone and are known to be shorter are sent ahead. With ``streams`` only.
    batch_seconds
        About how much work a batch is for driver, backend and worker, in seconds, whatever is in it. Calls that need
        each other's results are spread over workers where they are several times as much.
    orders
        Takes batches that need results which are not there yet (:class:`Coming`), and has them wait in the backend. If
        such a result doesn't come, or not as a value, the batch is given back as ``RETURNED``.
    knows_resources
        A call gets what its task needs of a worker (``Batch.resources``), or an error within seconds that says what
        there is. Other runners pass over it.
    keeps_ledger
        What came of calls of a batch of several is known even if their worker dies, and so is which of them it ran.
        Elsewhere those of which it is not known run again, each alone, at no charge.
    shared_memory
        Large values travel between driver and workers through shared memory.
    ends_with_driver
        Workers end within seconds when the driver is killed.
    """

    in_process: bool = False
    inline: bool = False
    keeps_order: bool = False
    cancel: Literal["none", "cooperative", "kill"] = "none"
    frees_slot: bool = False
    isolates_crashes: bool = True
    explains_crashes: bool = True
    async_aside: bool = False
    keeps_results: bool = True
    at_most_once: bool = True
    nested: Literal["shared", "in_place"] = "in_place"
    streams: bool = False
    latency: float = 0.0
    batch_seconds: float = 0.0003
    orders: bool = False
    knows_resources: bool = False
    keeps_ledger: bool = False
    shared_memory: bool = False
    ends_with_driver: bool = True


class OutcomeKind(enum.IntEnum):
    """What an :class:`Outcome` tells about one call of a batch. From ``VALUE`` on the call is over for the runner."""

    STARTED = 0
    """The body begins now. Only runners that stream tell it."""
    RECORD = 1
    """``data`` is something for the driver's logging, warnings or standard streams."""
    VALUE = 2
    """The body returned ``data``; a runner may put a :class:`Stored` there for a value that it left on its worker."""
    FAILURE = 3
    """The body raised ``data``, an encoded exception."""
    CRASHED = 4
    """The worker died while it ran this call; ``data`` says of what: a signal, an exit code, a node."""
    LOST = 5
    """The worker died while it held this call, and nobody knows which of its calls is to blame."""
    RETURNED = 6
    """The call never began; it may be sent again at no charge."""


class Outcome(NamedTuple):  # a tuple, because it pickles small and fast
    """One message about one call of a batch. The worker half makes most of them; a runner passes them on unread."""

    index: int  # type: ignore[assignment]  # hides a method of tuples, which nobody calls here
    """Which call of the batch."""
    kind: OutcomeKind
    data: Any = None
    seconds: float = 0.0
    """How long the body ran, measured on the worker. With ``RETURNED``: how long the call before it has been running,
    if that is why."""
    size: int = 0
    """Bytes of the pickled result, 0 for small plain values."""
    unlooked: tuple[Any, ...] = ()
    """Failures of nested calls at whose outcome the body never looked."""
    stamp: Any = 0
    """When the body ended, or with ``STARTED`` began, by the worker's clock; and where, with the first of a batch. Only
    if somebody listens to events."""


class Stored:
    """A result that stayed on the backend: reported instead of a value, and given back as one of ``Batch.upstream``.

    The value can go when nobody holds this object any more.

    Parameters
    ----------
    runner
        The runner that has it.
    handle
        What the backend knows it by.
    nbytes
        Its size, in bytes.
    """

    __slots__ = ("__weakref__", "_lock", "_parcel", "handle", "key", "nbytes", "runner")

    def __init__(self, runner: TaskRunner, handle: Any, nbytes: int) -> None:
        self.runner = runner
        self.handle: Any = handle
        self.nbytes = nbytes
        self.key: bytes | None = None
        """What it goes by if ``read_only`` calls use it several times."""
        self._parcel: Parcel | None = None
        self._lock = threading.Lock()

    def fetch(self) -> Parcel:
        """Return the value, brought here once and for all.

        Raises
        ------
        Exception
            Whatever the runner's ``fetch`` raises: the value may be lost with its worker.
        """
        with self._lock:
            if self._parcel is None:
                if self.handle is None:
                    raise RunnerStoppedError(f"it was stored by {self.runner!r}, which has been stopped since")
                self._parcel = self.runner.fetch(self)
            return self._parcel

    def leave(self) -> None:
        """Bring the value here, because the backend is about to stop: its handle is worth nothing from then on."""
        try:
            self.fetch()
        finally:
            self.handle = None

    def __reduce__(self) -> tuple[Any, ...]:
        # On its way to another runner's worker.
        return self.fetch().__reduce_ex__(5)

    def __repr__(self) -> str:
        return f"<Stored value of {self.nbytes} bytes>"


class Coming(NamedTuple):
    """Stands in ``Batch.upstream`` for the value of a call that is under way at the same runner.

    Only where :class:`Capabilities` says ``orders``, and only for calls of batches that ``may_stay``: results of those
    are to be kept until it is known that no batch comes that needs them, small ones too.
    """

    batch: Batch
    """The batch of that call."""
    call: int
    """Which call of the batch."""


class Batch:
    """One or more calls in order of submission: the unit that a runner is handed.

    A runner in the driver's process (``Capabilities.in_process``) gives it to ``Host.execute`` and needs nothing else.
    Every other runner carries ``body``, ``functions`` and ``upstream`` to a worker, has
    :func:`turnout.worker.run_batch` run them there, and passes the outcomes to ``Host.report``.
    """

    __slots__ = ()

    calls: Sequence[Call]
    """The calls, which belong to the engine: a runner may count them, no more."""
    seq: int
    """Rises in order of submission. Where one slot is free, the lowest comes first."""
    is_async: bool
    """Its calls are async: they run side by side on an event loop, by :func:`turnout.worker.run_batch_async`."""
    body: Parcel
    """The packed calls."""
    functions: Mapping[bytes, bytes]
    """The packed functions that the calls name, by digest. A worker that has run one keeps it: send each once."""
    upstream: Sequence[Any]
    """What the calls need from earlier ones: parcels, failures, or :class:`Stored` values of this very runner; where it
    ``orders``, also :class:`Coming` ones."""
    may_stay: bool
    """Whether large results may stay on the worker: if they are lost with it, the calls may run again."""
    resources: Mapping[str, float]
    """What the batch needs of one worker: ``cpu``, ``memory`` (bytes), ``gpu`` and names of the user's own."""
    options: Mapping[str, Mapping[str, Any]]
    """What the task says to particular runners, by their words: ``@task(dask_options={...})`` is under ``"dask"``."""


class Host(NamedTuple):
    """What the engine offers to a started runner. Both may be called from any thread."""

    execute: Callable[[Batch], Sequence[Batch]]
    """Run a batch here and now, in the driver's process; never raises. Returns the batches that became ready by it,
    which the runner must take as if they had been submitted: in this thread, that saves waking another one."""
    report: Callable[[Batch, Sequence[Outcome]], None]
    """Tell what became of calls of a batch that ran elsewhere. May be called many times for a batch, before or after
    ``submit`` returned; each call ends with exactly one outcome of kind ``VALUE`` or later. User callbacks may run
    inside it."""


class Plan(NamedTuple):
    """What a runner would start here, as far as it knows without starting it. See :meth:`TaskRunner.plan`."""

    slots: int | None = None
    """How many calls would run at once; None if only the started backend can tell."""
    worker_memory: int | None = None
    """How many bytes of memory the runner would let each worker have; None if it sets no limit, or can't tell."""


class TaskRunner(abc.ABC):
    """Where calls run.

    A runner object is a recipe first: making one starts nothing, it pickles, equal settings compare equal, and ``repr``
    shows how to make it again; all that is done here, from the arguments of ``__init__``. Keep those under attributes
    of your own, and keep what ``start`` makes apart from them.

    One backend runs at a time for one recipe object, however many flows use it: the first to submit starts it, the last
    to end stops it. ``with runner:`` keeps it up between flows.

    Examples
    --------
    >>> from turnout_runners.thread import ThreadPoolTaskRunner
    >>> ThreadPoolTaskRunner(max_workers=4)
    ThreadPoolTaskRunner(max_workers=4)
    >>> ThreadPoolTaskRunner(max_workers=4) == ThreadPoolTaskRunner(4)
    True
    """

    capabilities: Capabilities = Capabilities()
    max_batch_seconds: float = DEFAULT_BATCH_SECONDS
    """How much work, in seconds, calls may be that travel together; with 0 each travels alone."""
    _settings: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the settings that make the recipe."""
        if cls.__init__ is object.__init__ and (args or kwargs):
            raise TypeError(f"{cls.__name__}() takes no settings.")
        self = super().__new__(cls)
        # Arguments that don't fit are left for __init__ to complain about.
        with contextlib.suppress(TypeError):
            bound = inspect.signature(cls).bind(*args, **kwargs)
            self._settings = _explicit(bound)
        return self

    @abc.abstractmethod
    def start(self, host: Host) -> None:
        """Start the backend. Called once before the first ``submit``, and again only after ``stop``.

        Raises
        ------
        turnout.errors.RunnerStartError
            If the backend doesn't come up; any other exception is wrapped in one.
        """

    def give_up(self) -> None:  # noqa: B027 - the start may simply go on to its end
        """Have ``start`` end soon, in whatever way: nobody waits for it any more, and ``stop`` follows.

        Called from another thread while ``start`` runs, maybe several times. Must not wait. A runner that has this may
        be started in a thread that ends when it is up; others are started in the flow's own.
        """

    def plan(self) -> Plan:
        """Return what ``start`` would make here. Starts, connects to and imports nothing; ``turnout doctor`` shows it.

        By default a runner tells nothing of it.
        """
        return Plan()

    @abc.abstractmethod
    def slots(self) -> int:
        """Return how many calls can run at once, now. The engine keeps a few more under way. Any thread may ask."""

    @abc.abstractmethod
    def submit(self, batch: Batch) -> object:
        """Take a batch; what is returned is of no account.

        Never waits for a slot or for another batch (save for inline runners), and may be called from any thread, but
        never from two at once. If it raises, the batch's calls are Crashed with that exception.
        """

    def cancel(self, batch: Batch) -> bool:
        """Stop a batch as strongly as ``capabilities.cancel`` says, and return whether it will stop.

        Its calls are final already, and what is still reported about them is ignored, but each must still be reported:
        the place that it takes is free then, and a flow whose bodies are killed ends no earlier.
        The batch may be running, waiting, or over; any thread may call. Must not wait.
        """
        return False

    def recall(self, batch: Batch) -> None:  # noqa: B027 - what is given back is not owed
        """Have those calls of a batch given back, as ``RETURNED``, that have not begun; the others run on.

        Called when some of them are not wanted any more, or others have to go first; at most once for a batch. A runner
        that can't ask its workers does nothing: a batch of several calls gives them back by itself when it takes too
        long. Any thread may call. Must not wait.
        """

    def fetch(self, stored: Stored) -> Parcel:
        """Bring a value here that the runner reported as :class:`Stored`; may wait, and be called from any thread.

        Raises
        ------
        Exception
            If the value can't be had any more.
        """
        raise NotImplementedError(f"{self!r} stores no values")

    def waiting(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the calling thread, which runs a batch, gives its slot to others.

        Entered when a task waits for other calls of the same runner. Only for runners with ``nested="shared"``. In a
        worker, the value of the context may be a function that does the waiting: called with a lock and a number of
        seconds, it does what ``lock.acquire(timeout=seconds)`` does, in a way that the backend notices.
        """
        return contextlib.nullcontext()

    def is_waiting(self, batch: Batch) -> bool:
        """Return whether a batch under way waits for calls that it submitted, and that come to this same runner.

        Such a batch does not count as running when something has to run alone. Its ``slots`` are one more meanwhile,
        and the batch is reported anew, if only with no outcome. Any thread may ask. Must not wait.
        """
        return False

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop what ``start`` started, and nothing else. Twice is fine, and so is a backend that never came up.

        No batch is under way, save such as were cancelled or out of time and can't be stopped; and every stored value
        that somebody still holds has been fetched.
        """

    def __enter__(self) -> Self:
        # Imported here, because sessions stand on top of everything, and this module on nothing.
        from ._session import enter

        enter(self)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        from ._session import leave

        leave(self, *exc_info)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskRunner):
            return NotImplemented
        return type(self) is type(other) and self._settings == other._settings

    def __hash__(self) -> int:
        return hash((type(self), tuple(self._settings)))

    def __reduce__(self) -> tuple[Callable[..., TaskRunner], tuple[type[TaskRunner], dict[str, Any]]]:
        return _make, (type(self), self._settings)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._settings.items())
        return without_secrets(f"{type(self).__name__}({settings})", secrets_in(self._settings))

    def _repr_html_(self) -> str:
        from ._html import Row, card, first_line

        known = secrets_in(self._settings)
        # With its name, which may be what tells a secret, and whole, or a part of one might be left.
        told = {name: without_secrets(f"{name}={value!r}", known) for name, value in self._settings.items()}
        settings = [Row(name, first_line(text.removeprefix(f"{name}="))) for name, text in told.items()]
        shared = Row("arguments and results", "are shared" if self.capabilities.in_process else "are pickled")
        stopped = Row("a running call that is cancelled", _STOPPED[self.capabilities.cancel])
        return card("TaskRunner", type(self).__name__, [*settings, shared, stopped])


_STOPPED: Final = {"none": "runs on", "cooperative": "is asked to stop", "kill": "is stopped"}


def check_count(name: str, value: int | None) -> None:
    """Refuse a setting of a runner that counts something and is neither None nor a whole number from 1 on.

    Raises
    ------
    RunnerOptionError
        With the setting's name and value.

    Examples
    --------
    >>> check_count("max_workers", 4)
    >>> check_count("max_workers", 0)
    Traceback (most recent call last):
        ...
    turnout.errors.RunnerOptionError: max_workers=0: give a whole number, 1 or more.
    """
    if value is not None and (type(value) is not int or value < 1):
        raise RunnerOptionError(f"{name}={value!r}: give a whole number, 1 or more.")


def check_batch_seconds(value: float) -> float:
    """Return a number of seconds that calls may be worth together, if it is one.

    Raises
    ------
    RunnerOptionError
        If it is no number, less than 0, or more than a minute.

    Examples
    --------
    >>> check_batch_seconds(0.05)
    0.05
    """
    given: object = value
    if not isinstance(given, (int, float)) or not 0 <= given <= 60:
        raise RunnerOptionError(f"max_batch_seconds={value!r}: give seconds, from 0 (each call alone) to 60.")
    return value


def _explicit(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments by name, without those that merely repeat a default."""
    settings: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        parameter = bound.signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            settings.update(value)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            raise TypeError(f"{name}: the settings of a runner are named, not counted")
        elif value is not parameter.default:
            settings[name] = value
    return settings


def _make(cls: type[TaskRunner], settings: dict[str, Any]) -> TaskRunner:
    return cls(**settings)
