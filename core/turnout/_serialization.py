"""How values and functions travel to workers and back, and which part of a value can't.

Everything goes through cloudpickle with protocol 5: functions and classes of ``__main__`` travel too, and large buffers
stay out of the pickle stream, so that a runner may carry them through shared memory without a copy.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import marshal
import pickle
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Final, TypeAlias

import cloudpickle  # type: ignore[import-untyped]

from ._copies import private_copy
from ._locks import free_in_forks
from ._parts import Part, parts
from .errors import SerializationError

__all__ = [
    "PLAIN_TYPES",
    "Parcel",
    "Pickler",
    "SharedParcel",
    "dumps",
    "explain",
    "explain_load",
    "forget_functions",
    "found_at",
    "is_plain",
    "load_function",
    "pack_function",
    "reference_of",
]

Buffer: TypeAlias = bytes | bytearray | memoryview | pickle.PickleBuffer

PROTOCOL: Final = 5
PLAIN_TYPES: Final = frozenset({int, float, complex, bool, str, bytes, types.NoneType})
_SIZED: Final = frozenset({str, bytes})
_PLAIN_LENGTH: Final = 4096
# Below this size, a buffer of its own costs a runner more than a copy does.
_SMALL_BUFFER: Final = 1024
_CACHED_FUNCTIONS: Final = 1000
_SEARCHED_DEPTH: Final = 50
# What is nested too deeply is nested too deeply on every level: the first few tell where.
_SEARCHED_DEPTH_OF_DEEP: Final = 2
_SEARCHED_OBJECTS: Final = 300
_MISSING: Final = object()
_CACHED: Final = type(functools.cache(len))


def is_plain(value: object) -> bool:
    """Return whether a value is small, can't change, and needs no pickler of ours: exact types only."""
    kind = type(value)
    return kind in PLAIN_TYPES and (kind not in _SIZED or len(value) <= _PLAIN_LENGTH)  # type: ignore[arg-type]


class Parcel:
    """One pickled object: the pickle stream, and the large buffers that stayed out of it.

    The buffers are those of the pickled object itself, not copies: what changes there before the parcel is carried
    away, changes here.

    Parameters
    ----------
    data
        The pickle stream.
    buffers
        The buffers that the stream asks for, in order.

    Examples
    --------
    >>> dumps([1, 2]).load()
    [1, 2]
    """

    __slots__ = ("buffers", "data", "key")

    def __init__(self, data: Buffer, buffers: tuple[Buffer, ...] = ()) -> None:
        self.data = data
        self.buffers = buffers
        self.key: bytes | None = None
        """What it goes by if ``read_only`` calls use it several times. It stays behind when the parcel travels."""

    @property
    def nbytes(self) -> int:
        """The size of stream and buffers together, in bytes."""
        return memoryview(self.data).nbytes + sum(memoryview(buffer).nbytes for buffer in self.buffers)

    def load(self, *, read_only: bool = False) -> Any:
        """Return the object, over the parcel's buffers.

        Parameters
        ----------
        read_only
            Whether writing to the buffers is an error.
        """
        buffers = [_raw(buffer).toreadonly() for buffer in self.buffers] if read_only else self.buffers
        return pickle.loads(self.data, buffers=buffers)

    def owned(self) -> Parcel:
        """Return a parcel that shares no memory with this one."""
        # What was read-only stays so: the stream itself says it of each buffer.
        return Parcel(bytes(self.data), tuple(private_copy(_raw(buffer)) for buffer in self.buffers))

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Parcel], tuple[Any, ...]]:
        if protocol < PROTOCOL:
            # concurrent.futures and multiprocessing pickle with protocol 4, which knows nothing of buffers.
            return Parcel, (bytes(self.data), tuple(map(_copied, self.buffers)))
        large = memoryview(self.data).nbytes > _SMALL_BUFFER
        data = pickle.PickleBuffer(self.data) if large else bytes(self.data)
        return Parcel, (data, tuple(map(pickle.PickleBuffer, self.buffers)))

    def __repr__(self) -> str:
        return f"<Parcel of {self.nbytes} bytes, {len(self.buffers)} buffers>"


class SharedParcel(Parcel):
    """A parcel over buffers that others use, too: what is loaded has copies of its own, unless it is read-only.

    As one of ``Batch.upstream`` it is an argument that calls of other batches may have: it is the same object then,
    and a runner may carry it once to each worker. It is pickled as any other parcel.
    """

    __slots__ = ("__weakref__",)

    def load(self, *, read_only: bool = False) -> Any:
        """Return the object, over copies of the parcel's buffers or, if ``read_only``, over the buffers themselves."""
        return super().load(read_only=True) if read_only else self.owned().load()


def _raw(buffer: Buffer) -> memoryview:
    return pickle.PickleBuffer(buffer).raw()


def _copied(buffer: Buffer) -> bytes | bytearray:
    raw = _raw(buffer)
    return bytes(raw) if raw.readonly else bytearray(raw)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle's pickler, which knows besides that a name may lead to a task around a function."""

    reduce_exception: ClassVar[Callable[[BaseException], Any] | None] = None
    """How exceptions are pickled that are values. Set by ``_failures``, which knows, and stands on this module."""

    def reducer_override(self, obj: Any) -> Any:
        """Return how ``obj`` is pickled: a function under a task goes by the task's name."""
        reduce_exception = type(self).reduce_exception
        if isinstance(obj, BaseException) and reduce_exception is not None:
            return reduce_exception(obj)
        if type(obj) is types.CodeType:
            # cloudpickle would forget the file's name, and with it the source lines of tracebacks. Version 2 of the
            # format gives equal bytes for equal code.
            with contextlib.suppress(ValueError):  # constants that only cloudpickle can carry
                return marshal.loads, (marshal.dumps(obj, 2),)
        if type(obj) is _CACHED and reference_of(obj) is None:
            # Goes with an empty cache. Python pickles it by name only.
            return _with_cache, _cache_parts(obj)
        if type(obj) is types.FunctionType:
            names = obj.__module__, obj.__qualname__
            found = _found(*names)
            # By value, a decorated function would drag along copies of all the globals that it uses.
            if found is not obj and getattr(found, "fn", None) is obj:
                return _undecorated, names
        return super().reducer_override(obj)


def dumps(value: object) -> Parcel:
    """Pickle a value; buffers over 1 KB stay as they are, uncopied.

    Raises
    ------
    Exception
        Whatever the value's own pickling raises. :func:`explain` makes a readable error of it.
    """
    buffers: list[pickle.PickleBuffer] = []

    def keep_in_stream(buffer: pickle.PickleBuffer) -> bool:
        small = memoryview(buffer).nbytes <= _SMALL_BUFFER
        if not small:
            buffers.append(buffer)
        return small

    stream = io.BytesIO()
    Pickler(stream, PROTOCOL, keep_in_stream).dump(value)
    return Parcel(stream.getvalue(), tuple(buffers))


def reference_of(obj: Any) -> tuple[str, str] | None:
    """Return the module and qualified name that lead to this very object on a worker as well, or None."""
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    found = _found(module, name) is obj
    return (str(module), str(name)) if found else None


def _found(module_name: Any, name: Any) -> Any:
    """Return what a worker will find under these names, if it can import them."""
    module = sys.modules.get(module_name) if isinstance(module_name, str) else None
    if module is None or not isinstance(name, str) or module_name == "__main__" or _travels_by_value(module_name):
        return _MISSING
    # Modules without a spec were made by hand or by exec: no import finds them again.
    if getattr(module, "__spec__", None) is None:
        return _MISSING
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, _MISSING)
    return found


def _travels_by_value(module: str) -> bool:
    registered = cloudpickle.list_registry_pickle_by_value()
    if not registered:
        return False
    parts = module.split(".")
    return any(".".join(parts[:count]) in registered for count in range(1, len(parts) + 1))


def found_at(module: str, name: str) -> Any:
    """Return what :func:`reference_of` told the place of."""
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _undecorated(module: str, name: str) -> Any:
    return found_at(module, name).fn


def _cache_parts(cached: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    return cached.__wrapped__, cached.cache_parameters()


def _with_cache(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def pack_function(function: Callable[..., Any]) -> tuple[bytes, bytes]:
    """Return the digest (16 bytes) of a function or class, and its pickled form."""
    import hashlib  # takes 10 ms, and runners in this process pack nothing

    stream = io.BytesIO()
    Pickler(stream, PROTOCOL).dump(function)
    blob = stream.getvalue()
    return hashlib.blake2b(blob, digest_size=16).digest(), blob


_functions: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()
_functions_lock = free_in_forks(threading.Lock())


def load_function(digest: bytes, blob: bytes, what: str = "The function of a task") -> Callable[..., Any]:
    """Return a packed function; the same digest gives the same object, for the last 1000 digests.

    Raises
    ------
    SerializationError
        If it can't be unpickled in this process, for instance because a module isn't installed here.
    """
    with _functions_lock:
        function = _functions.get(digest)
        if function is not None:
            _functions.move_to_end(digest)
            return function
    if not blob:
        raise SerializationError(
            f"{what} never arrived: its runner must send it to each process before the first call."
        )
    # Not under the lock: unpickling imports modules, which may take long, or come back here in another thread.
    try:
        function = pickle.loads(blob)
    except Exception as error:
        raise explain_load(error, what) from error
    with _functions_lock:
        function = _functions.setdefault(digest, function)
        if len(_functions) > _CACHED_FUNCTIONS:
            _functions.popitem(last=False)
    return function


def forget_functions() -> None:
    """Have all functions unpacked again: what they refer to by name has changed in this process."""
    with _functions_lock:
        _functions.clear()


def explain_load(error: Exception, what: str) -> SerializationError:
    """Return the error for something that arrived but can't be unpickled here; ``what`` begins its text."""
    reason = f"{what} can't be loaded in the process that needs it ({_described(error)})."
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        return SerializationError(
            f"{reason} The module {error.name!r} can't be imported there. Install it where the workers run, or send "
            f"its code along: import {top}, cloudpickle; cloudpickle.register_pickle_by_value({top})."
        )
    return SerializationError(f"{reason} Make sure that driver and workers run the same versions of all the code.")


def explain(value: object, error: BaseException, what: str, name: str = "value") -> SerializationError:
    """Return the error for a value that can't be pickled, naming its smallest part that is to blame.

    Parameters
    ----------
    value
        What was to be pickled.
    error
        What pickling it raised.
    what
        The beginning of the text, such as ``"The parameter 'config' of task 'load-0'"``.
    name
        What the value is called in the path to the part.

    Examples
    --------
    >>> import threading
    >>> print(explain({"lock": threading.Lock()}, TypeError("no"), "The parameter 'config'", "config"))
    The parameter 'config' can't be pickled: config['lock'] is a _thread.lock (TypeError: cannot pickle '_thread.lock' \
object). Runners that use other processes must pickle what they send: pass something that can be pickled, or use \
task_runner="thread".
    """
    try:
        path, part, cause = _Search().smallest(name, value, error)
    except Exception:
        # The search calls code of the value's classes, which may do anything.
        path, part, cause = name, value, error
    kind = f"{_kind(part)} that is nested too deeply" if _too_deep(cause) else _kind(part)
    return SerializationError(
        f"{what} can't be pickled: {path} is {kind} ({_described(cause)}). Runners that use other processes "
        'must pickle what they send: pass something that can be pickled, or use task_runner="thread".'
    )


class _Search:
    """The way down from a value that can't be pickled to the smallest part that can't."""

    def __init__(self) -> None:
        self._seen: dict[int, object] = {}

    def smallest(self, path: str, value: object, error: BaseException) -> tuple[str, object, BaseException]:
        return self._descend(path, value, error, 0)[0]

    def _descend(
        self, path: str, value: object, error: BaseException, depth: int
    ) -> tuple[tuple[str, object, BaseException], bool]:
        """Return the smallest part found, and whether it is to blame for sure.

        It may not be where it leads back to an object that is being searched: then that object's other parts have to
        be searched too.
        """
        self._seen[id(value)] = value
        best, sure = (path, value, error), True
        if depth >= (_SEARCHED_DEPTH_OF_DEEP if _too_deep(error) else _SEARCHED_DEPTH):
            return best, sure
        for (part_path, part), part_error in _failing(_known_parts(path, value)):
            if id(part) in self._seen or len(self._seen) >= _SEARCHED_OBJECTS:
                sure = False
                continue
            found, found_sure = self._descend(part_path, part, part_error, depth + 1)
            if found_sure:
                return found, True
            best, sure = found, False
        return best, sure


def _known_parts(path: str, value: object) -> list[Part]:
    try:
        return list(parts(path, value))
    except BaseException:
        # The object refuses as a whole, as locks and open files do.
        return []


def _failing(suspects: Sequence[Part]) -> Iterator[tuple[Part, BaseException]]:
    """Yield the parts that can't be pickled, by halving: one bad item in a million takes few picklings."""
    error = _failure([part for _, part in suspects])
    if error is None:
        return
    if len(suspects) == 1:
        yield suspects[0], error
        return
    middle = len(suspects) // 2
    yield from _failing(suspects[:middle])
    yield from _failing(suspects[middle:])


def _failure(value: object) -> BaseException | None:
    try:
        Pickler(_Nowhere(), PROTOCOL, lambda _: None).dump(value)
    except BaseException as error:
        return error
    return None


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


def _too_deep(error: BaseException) -> bool:
    # cloudpickle turns the RecursionError of a dump into an error of its own.
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def _kind(value: object) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _described(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "its text can't be had"
    return f"{type(error).__name__}: {text if len(text) <= 500 else text[:500] + '...'}"
