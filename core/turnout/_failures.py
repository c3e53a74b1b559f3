"""How exceptions travel: type, arguments, attributes, notes, causes, contexts, groups and tracebacks.

Pickle alone loses half of that, and calls ``__init__`` with arguments that it may not take. Here each exception that is
reachable from the one at hand becomes one record; references between records are numbers, so cycles and chains of any
length are fine, and an exception that is met twice stays one object.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from ._exceptions import Shape, get, members_of, notes_of, put, put_member, report, shape_of, text_of
from ._serialization import PLAIN_TYPES, PROTOCOL, Pickler, explain, reference_of
from ._tracebacks import Frame, frames_of, listing, rebuilt, without_own_frames
from .errors import SerializationError

__all__ = ["TravellingFailure", "decode", "encode", "without_own_frames"]


class _Record(NamedTuple):
    """One exception, in values that any pickler takes."""

    module: str
    name: str
    by_value: bytes | None
    """The class itself, where module and name don't lead to it on another machine."""
    text: str
    """What ``str`` gives, for the case that the class can't be had where this is decoded."""
    values: tuple[Any, Any, Any] | bytes
    """``args``, members and ``__dict__``; pickled where they hold more than plain values."""
    reduced: bytes | None
    """What the class's own ``__reduce__`` gave, pickled."""
    needs: tuple[int, ...]
    """The exceptions that have to be there before this one can be made."""
    notes: tuple[str, ...] | None
    """Notes, which the class's own words may forget."""
    group: tuple[str, tuple[int, ...]] | None
    """The message and the members of an exception group."""
    frames: tuple[Frame, ...]
    cause: int | None
    context: int | None
    suppress_context: bool


def encode(error: BaseException, what: str = "the task") -> Any:
    """Return an exception, and all those that it refers to, as nested tuples that any pickler takes.

    Parameters
    ----------
    error
        The exception, with its traceback.
    what
        Who raised it, such as ``"task 'load-0'"``; for the text of the error below.

    Raises
    ------
    SerializationError
        If an argument or attribute can't be pickled. The text names it, and holds the original traceback.

    Examples
    --------
    >>> decode(encode(ValueError("x")))
    ValueError('x')
    """
    encoder = _Encoder(error, what)
    try:
        return encoder.records()
    except SerializationError:
        raise
    except Exception as problem:
        # What an exception does when it is looked at is up to its class.
        encoder.refuse(0, problem, error)


class TravellingFailure(NamedTuple):
    """An exception that is an argument: as much of it arrives as of one that is raised."""

    encoded: Any

    def load(self) -> BaseException:
        """Return the exception."""
        return decode(self.encoded)


def decode(encoded: Any) -> BaseException:
    """Return the exception that was encoded.

    Never raises: where a class can't be had in this process, a :class:`SerializationError` with the original type,
    text and traceback stands in its place.
    """
    return _Decoder(encoded).root()


def _reduced(error: BaseException) -> tuple[Callable[[Any], BaseException], tuple[Any]]:
    return decode, (encode(error, "the caller"),)


# An exception that is a value, or part of one, keeps as much as one that is raised.
Pickler.reduce_exception = _reduced


class _Encoder:
    """Walks from one exception to all that it refers to, without recursion: chains may be thousands long."""

    def __init__(self, error: BaseException, what: str) -> None:
        self._what = what
        self._errors = [error]
        self._index = {id(error): 0}
        self._paths: list[tuple[int, str]] = [(0, "error")]

    def records(self) -> tuple[tuple[Any, ...], ...]:
        # The list grows while it is walked over.
        return tuple(tuple(self._record(index, error)) for index, error in enumerate(self._errors))

    def reference(self, owner: int, error: BaseException, step: str) -> int:
        index = self._index.setdefault(id(error), len(self._errors))
        if index == len(self._errors):
            self._errors.append(error)
            self._paths.append((owner, step))
        return index

    def _record(self, index: int, error: BaseException) -> _Record:
        module, name, by_value = self._class(index, type(error))
        shape = shape_of(type(error))
        reduced, needs = self._reduced(index, error) if shape.reduces else (None, ())
        group = self._group(index, error)
        values = self._values(index, error, shape, required=reduced is None)
        return _Record(
            module=module,
            name=name,
            by_value=by_value,
            # Otherwise the arguments tell it.
            text="" if module == "builtins" and isinstance(values, tuple) else text_of(error),
            values=values,
            reduced=reduced,
            needs=needs if group is None else (*needs, *group[1]),
            notes=notes_of(error),
            group=group,
            frames=tuple(frames_of(get(error, "__traceback__"))),
            cause=self._optional(index, error, "__cause__"),
            context=self._optional(index, error, "__context__"),
            suppress_context=get(error, "__suppress_context__"),
        )

    def _class(self, index: int, cls: type[BaseException]) -> tuple[str, str, bytes | None]:
        reference = reference_of(cls)
        if reference is not None:
            return (*reference, None)
        try:
            by_value, _ = self._pickled(index, cls)
        except Exception as error:
            self.refuse(index, error, cls)
        return cls.__module__, cls.__qualname__, by_value

    def _values(self, index: int, error: BaseException, shape: Shape, required: bool) -> tuple[Any, Any, Any] | bytes:
        members = dict(members_of(error, shape))
        values = (get(error, "args"), members, vars(error))
        if all(
            type(value) in PLAIN_TYPES for part in (values[0], members.values(), values[2].values()) for value in part
        ):
            return (values[0], tuple(members.items()), tuple(values[2].items()))
        try:
            return self._pickled(index, values)[0]
        except Exception as problem:
            # The class's own words leave out what can't be pickled.
            if not required:
                return ((text_of(error),), (), ())
            self.refuse(index, problem, error)

    def _reduced(self, index: int, error: BaseException) -> tuple[bytes | None, tuple[int, ...]]:
        try:
            return self._pickled(index, error)
        except Exception:
            # Then the exception is rebuilt from its parts.
            return None, ()

    def _group(self, index: int, error: BaseException) -> tuple[str, tuple[int, ...]] | None:
        if not isinstance(error, BaseExceptionGroup):
            return None
        members = enumerate(error.exceptions)
        return error.message, tuple(self.reference(index, member, f"exceptions[{at}]") for at, member in members)

    def _optional(self, index: int, error: BaseException, name: str) -> int | None:
        other = get(error, name)
        return None if other is None else self.reference(index, other, name)

    def _pickled(self, index: int, value: Any) -> tuple[bytes, tuple[int, ...]]:
        stream = io.BytesIO()
        pickler = _FailurePickler(stream, self, index, value)
        pickler.dump(value)
        return stream.getvalue(), tuple(pickler.met)

    def refuse(self, index: int, problem: Exception, part: Any) -> NoReturn:
        error = self._errors[index]
        name = type(error).__qualname__
        found = explain(part, problem, f"The exception {name} raised by {self._what}", self._path(index))
        refusal = SerializationError(f"{found} The original exception:\n\n{report(self._errors[0])}")
        try:
            raise refusal
        finally:
            # Otherwise the exception that can't travel would come along as the context of this one.
            refusal.__context__ = None

    def _path(self, index: int) -> str:
        steps: list[str] = []
        while index:
            index, step = self._paths[index]
            steps.append(step)
        return ".".join(["error", *(reversed(steps) if len(steps) <= 5 else ("...", steps[0]))])


class _FailurePickler(Pickler):
    """Pickles values of one exception; the exceptions among them become references to records."""

    reduce_exception = None

    def __init__(self, stream: io.BytesIO, encoder: _Encoder, owner: int, root: Any) -> None:
        super().__init__(stream, PROTOCOL)
        self.met: list[int] = []
        self._encoder = encoder
        self._owner = owner
        self._root = root

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, BaseException) or obj is self._root:
            return None
        index = self._encoder.reference(self._owner, obj, f"({type(obj).__name__})")
        self.met.append(index)
        return index


class _Decoder:
    """Makes all exceptions first, and fills them then, since they may refer to each other in circles."""

    def __init__(self, encoded: Any) -> None:
        self._records = [_Record._make(fields) for fields in encoded]
        self._errors: list[BaseException | None] = [None] * len(self._records)
        # Made without their class's own words, and still to be filled.
        self._bare: set[int] = set()
        self._made_by_class: set[int] = set()

    def root(self) -> BaseException:
        for index in range(len(self._records)):
            self._make_with_needs(index)
        for index, record in enumerate(self._records):
            self._fill(record, self.error(index), index)
        return self.error(0)

    def error(self, index: int) -> BaseException:
        error = self._errors[index]
        if error is None:
            raise LookupError("an exception that needs itself to be made")
        return error

    def _make_with_needs(self, first: int) -> None:
        stack, begun = [first], set[int]()
        while stack:
            index = stack[-1]
            needs = [need for need in self._records[index].needs if self._errors[need] is None and need not in begun]
            if needs and index not in begun:
                begun.add(index)
                stack += needs
            else:
                if self._errors[index] is None:
                    self._errors[index] = self._made(index, self._records[index])
                stack.pop()

    def _made(self, index: int, record: _Record) -> BaseException:
        if record.reduced is not None:
            with contextlib.suppress(Exception):
                error = self._loaded(record.reduced)
                if isinstance(error, BaseException):
                    self._made_by_class.add(index)
                    return error
        try:
            bare: BaseException = self._bare_error(self._class(record), record)
        except Exception as problem:
            return _stand_in(record, problem)
        self._bare.add(index)
        return bare

    def _class(self, record: _Record) -> type[BaseException]:
        if record.by_value is not None:
            cls = self._loaded(record.by_value)
        else:
            module = sys.modules.get(record.module) or importlib.import_module(record.module)
            cls = functools.reduce(getattr, record.name.split("."), module)
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise TypeError(f"{record.module}.{record.name} is no class of exceptions")
        return cls

    def _bare_error(self, cls: type[BaseException], record: _Record) -> Any:
        new = shape_of(cls).new
        if record.group is None:
            return new(cls)
        message, members = record.group
        return new(cls, message, [self.error(member) for member in members])

    def _loaded(self, blob: bytes) -> Any:
        return _FailureUnpickler(io.BytesIO(blob), self).load()

    def _fill(self, record: _Record, error: BaseException, index: int) -> None:
        if index in self._bare:
            self._fill_values(record, error)
        elif index in self._made_by_class:
            self._add_attributes(record, error)
        put(error, "__traceback__", rebuilt(record.frames))
        put(error, "__cause__", None if record.cause is None else self.error(record.cause))
        put(error, "__context__", None if record.context is None else self.error(record.context))
        put(error, "__suppress_context__", record.suppress_context)

    def _values(self, record: _Record) -> tuple[Any, Any, Any]:
        values = record.values
        return self._loaded(values) if isinstance(values, bytes) else values

    def _fill_values(self, record: _Record, error: BaseException) -> None:
        try:
            arguments, members, attributes = self._values(record)
        except Exception as problem:
            put(error, "args", (record.text,))
            note = f"Its arguments and attributes can't be loaded here: {type(problem).__name__}: {problem}"
            vars(error)["__notes__"] = [*(record.notes or ()), note]
            return
        put(error, "args", arguments)
        vars(error).update(attributes)
        descriptors = shape_of(type(error)).members
        for name, value in dict(members).items():
            put_member(descriptors.get(name), error, value)

    def _add_attributes(self, record: _Record, error: BaseException) -> None:
        """Add what was set on the exception after it was made, of which the class's own words know nothing."""
        with contextlib.suppress(Exception):
            _, _, attributes = self._values(record)
            vars(error).update(dict(attributes) | vars(error))
        if record.notes is not None:
            vars(error).setdefault("__notes__", list(record.notes))


class _FailureUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, decoder: _Decoder) -> None:
        super().__init__(stream)
        self._decoder = decoder

    def persistent_load(self, pid: int) -> BaseException:
        return self._decoder.error(pid)


def _stand_in(record: _Record, problem: Exception) -> SerializationError:
    values = record.values
    text = record.text or (", ".join(map(str, values[0])) if isinstance(values, tuple) else "")
    frames = listing(record.frames)
    return SerializationError(
        f"The exception {record.module}.{record.name} can't be rebuilt in this process "
        f"({type(problem).__name__}: {problem}). Make its class importable here, or send its code along with "
        "cloudpickle.register_pickle_by_value(module). The original exception:\n\n"
        f"Traceback (most recent call last):\n{frames}{record.module}.{record.name}: {text}"
    )
