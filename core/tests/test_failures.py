import dataclasses
import functools
import importlib
import inspect
import io
import json
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnout import _failures
from turnout._failures import decode, encode, without_own_frames
from turnout.errors import CancelledRun, SerializationError, UpstreamFailed, WouldDeadlockError

LOCK = threading.Lock()
CORE = Path(_failures.__file__).parent.parent
E = TypeVar("E", bound=BaseException)


def travelled(error: E, kind: type[E] | None = None) -> E:
    """Send an exception through the plainest pickle there is."""
    arrived = decode(pickle.loads(pickle.dumps(encode(error), 4)))
    assert arrived is not error
    assert type(arrived) is type(error)
    return arrived


def raised(error: E) -> E:
    try:
        raise error
    except type(error) as caught:
        return caught


class OwnInit(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class OwnNew(Exception):
    def __new__(cls, code: int) -> "OwnNew":
        return super().__new__(cls, code)

    def __init__(self, code: int) -> None:
        self.code = code


class Slotted(Exception):
    __slots__ = ("__secret", "left", "right")
    left: object
    right: object

    def __init__(self, left: object) -> None:
        self.left = left
        self.__secret = left

    def secret(self) -> object:
        return self.__secret


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int
    words: list[str]


class OwnOSError(OSError):
    def __init__(self, path: str, attempts: int) -> None:
        super().__init__(2, "not there", path)
        self.attempts = attempts


class OwnReduce(Exception):
    """Leaves its connection at home, which no pickle takes."""

    def __init__(self, code: int, connection: object = LOCK) -> None:
        super().__init__(code)
        self.code = code
        self.connection = connection

    def __reduce__(self) -> Any:
        return OwnReduce, (self.code, "reconnected")


class BrokenReduce(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(code)
        self.detail = detail

    def __reduce__(self) -> Any:
        return BrokenReduce, (1,)


class RaisingReduce(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class WithSetState(Exception):
    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state, restored=True)


class Older(Exception):
    def __reduce__(self) -> Any:
        return type(self), (self.args[0],)


class Younger(Older):
    """Adds what the inherited reduction doesn't know."""

    def __init__(self, code: int, detail: str = "lost") -> None:
        super().__init__(code)
        self.detail = detail


class Unreadable(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("don't look at me")


class Selfish(Exception):
    """Its own reduction needs itself."""

    def __reduce__(self) -> Any:
        return Selfish, (self, self.__context__)


class OwnGroup(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception], code: int) -> "OwnGroup":
        self = super().__new__(cls, f"group of code {code}", errors)
        self.code = code
        return self

    code: int

    def derive(self, excs: Any) -> Any:
        return own_group(excs, self.code)


# Type checkers look at __init__, which groups leave to __new__.
own_group: Any = OwnGroup


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class WithProperty(Exception):
    args: Any = property(lambda self: ("made up",))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


def same(arrived: BaseException, error: BaseException) -> bool:
    return (
        type(arrived) is type(error)
        and BaseException.args.__get__(arrived) == BaseException.args.__get__(error)  # type: ignore[attr-defined]
        and vars(arrived) == vars(error)
    )


class TestTypes:
    @pytest.mark.parametrize(
        "error",
        [
            ValueError("x"),
            ValueError(),
            KeyError("x"),
            KeyboardInterrupt(),
            GeneratorExit(),
            RecursionError("x"),
            OwnInit(3, detail="x"),
            OwnNew(3),
            OwnOSError("/x", 4),
            Frozen(3, ["a"]),
            BrokenReduce(1, "kept"),
            RaisingReduce(1, 2),
            UpstreamFailed("text", "root-0"),
            CancelledRun("x"),
            json.JSONDecodeError("x", "doc", 1),
            subprocess.CalledProcessError(3, ["a"], b"out", b"err"),
            ValueError({"a": [1, (2, b"x")]}, 1.5, None),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_type_arguments_and_attributes(self, error: BaseException) -> None:
        arrived = travelled(error)
        assert same(arrived, error)
        assert str(arrived) == str(error)
        assert repr(arrived) == repr(error)

    @pytest.mark.parametrize(
        ("error", "names"),
        [
            (OSError(2, "text", "a", None, "b"), ["errno", "strerror", "filename", "filename2"]),
            (OSError(2, "text", "a"), ["errno", "strerror", "filename", "filename2"]),
            (OSError("text"), ["errno", "strerror", "filename"]),
            (BlockingIOError(11, "text", 5), ["errno", "characters_written"]),
            (OwnOSError("a", 5), ["errno", "strerror", "filename", "attempts"]),
            (ImportError("text", name="a", path="b"), ["name", "path", "msg"]),
            (NameError("text", name="a"), ["name"]),
            (AttributeError("text", name="a", obj=3), ["name"]),
            (SystemExit(3), ["code"]),
            (StopIteration({"a": 1}), ["value"]),
            (
                SyntaxError("text", ("file", 1, 2, "line", 3, 4)),
                ["msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset", "print_file_and_line"],
            ),
            (UnicodeDecodeError("utf-8", b"abc", 1, 2, "why"), ["encoding", "object", "start", "end", "reason"]),
            (UnicodeEncodeError("utf-8", "abc", 1, 2, "why"), ["encoding", "object", "start", "end", "reason"]),
            (UnicodeTranslateError("abc", 1, 2, "why"), ["object", "start", "end", "reason"]),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    def test_what_c_code_keeps(self, error: BaseException, names: list[str]) -> None:
        arrived = travelled(error)
        assert [getattr(arrived, name) for name in names] == [getattr(error, name) for name in names]
        assert same(arrived, error)
        assert str(arrived) == str(error)

    def test_the_owner_of_a_missing_attribute_stays_at_home(self) -> None:
        error = AttributeError("text", name="a", obj=LOCK)
        assert travelled(error).obj is None
        assert travelled(error).name == "a"

    def test_slots(self) -> None:
        arrived = travelled(Slotted([1]))
        assert arrived.left == [1]
        assert arrived.secret() == [1]
        assert arrived.left is arrived.secret()
        assert not hasattr(arrived, "right")

    def test_classes_that_hide_their_own_parts(self) -> None:
        error = WithProperty("x")
        vars(error)["__notes__"] = ["note"]
        assert same(travelled(error), error)

    def test_local_classes(self) -> None:
        class Local(Exception):
            def __init__(self, a: int, b: int) -> None:
                self.sum = a + b

        arrived = travelled(Local(1, 2))
        assert arrived.sum == 3

    def test_messages_of_a_megabyte(self) -> None:
        text = "x" * 2**20
        assert str(travelled(ValueError(text))) == text
        assert str(travelled(OwnInit(1, detail=text))) == "1: " + text

    def test_an_exception_without_text(self) -> None:
        assert travelled(Mute(1)).args == (1,)

    def test_arrays_and_exceptions_as_arguments(self) -> None:
        inner = raised(OwnInit(1, detail="x"))
        error = ValueError(np.arange(3), inner, [inner])
        error.original = inner  # type: ignore[attr-defined]
        arrived = travelled(error)
        assert arrived.args[0].tolist() == [0, 1, 2]
        assert arrived.args[1] is arrived.args[2][0] is arrived.original  # type: ignore[attr-defined]
        assert same(arrived.args[1], inner)
        assert arrived.args[1].__traceback__ is not None

    def test_an_exception_that_holds_itself(self) -> None:
        error = ValueError()
        error.args = (error, [error])
        arrived = travelled(error)
        assert arrived.args[0] is arrived
        assert arrived.args[1][0] is arrived


class TestOwnReduction:
    def test_it_is_trusted(self) -> None:
        arrived = travelled(OwnReduce(3))
        assert arrived.code == 3
        assert arrived.connection == "reconnected"

    def test_notes_come_along_all_the_same(self) -> None:
        error = raised(OwnReduce(3))
        error.add_note("note")
        error.__cause__ = KeyError("x")
        arrived = travelled(error)
        assert arrived.__notes__ == ["note"]
        assert same(arrived.__cause__, error.__cause__)  # type: ignore[arg-type]
        assert names(arrived) == names(error)

    def test_its_own_state(self) -> None:
        error = WithSetState(1)
        error.x = 2  # type: ignore[attr-defined]
        assert vars(travelled(error)) == {"x": 2, "restored": True}

    def test_attributes_that_were_set_later_come_along_all_the_same(self) -> None:
        error = json.JSONDecodeError("x", "doc", 1)
        error.url = "later"  # type: ignore[attr-defined]
        assert same(travelled(error), error)

    def test_an_inherited_one_is_not_trusted_with_a_younger_init(self) -> None:
        error = Younger(1, "kept")
        assert same(travelled(error), error)

    def test_exceptions_inside_stay_one_object(self) -> None:
        inner: Any = OwnInit(1, detail="x")
        arrived = travelled(ExceptionGroup("x", [OwnReduce(inner), inner]))
        first: Any
        second: Any
        first, second = arrived.exceptions
        assert isinstance(first, OwnReduce)
        assert first.code is second

    def test_in_a_circle_it_is_rebuilt_from_its_parts(self) -> None:
        error = Selfish(1)
        error.__context__ = Selfish(2)
        error.__context__.__context__ = error
        arrived = travelled(error)
        assert arrived.args == (1,)
        assert arrived.__context__ is not None
        assert arrived.__context__.__context__ is arrived

    def test_a_group_in_a_circle_with_one_that_reduces_itself(self) -> None:
        member = Selfish(1)
        group = ExceptionGroup("x", [member])
        member.__context__ = group
        arrived = travelled(group)
        assert arrived.exceptions[0].args == (1,)
        assert arrived.exceptions[0].__context__ is arrived

    def test_classes_made_in_other_languages(self) -> None:
        pydantic = pytest.importorskip("pydantic")
        with pytest.raises(pydantic.ValidationError) as caught:
            pydantic.TypeAdapter(int).validate_python("x")
        arrived = travelled(caught.value)
        assert str(arrived) == str(caught.value)


class TestChains:
    def test_cause_context_and_suppression(self) -> None:
        error = raised(ValueError("x"))
        error.__context__ = raised(KeyError("context"))
        error.__cause__ = raised(OwnInit(1, detail="cause"))
        error.add_note("note")
        arrived = travelled(error)
        assert same(arrived.__context__, error.__context__)  # type: ignore[arg-type]
        assert same(arrived.__cause__, error.__cause__)  # type: ignore[arg-type]
        assert arrived.__suppress_context__
        assert arrived.__notes__ == ["note"]
        assert printed(arrived) == printed(error)

    def test_raise_from_none(self) -> None:
        error = ValueError("x")
        error.__context__ = KeyError("context")
        error.__suppress_context__ = True
        arrived = travelled(error)
        assert isinstance(arrived.__context__, KeyError)
        assert arrived.__cause__ is None
        assert arrived.__suppress_context__

    def test_a_cause_without_suppression(self) -> None:
        error = ValueError("x")
        error.__cause__ = KeyError("cause")
        error.__suppress_context__ = False
        assert not travelled(error).__suppress_context__

    def test_shared_and_circular(self) -> None:
        a, b = ValueError("a"), KeyError("b")
        a.__cause__ = a.__context__ = b
        b.__context__ = a
        arrived = travelled(a)
        assert arrived.__cause__ is arrived.__context__
        assert arrived.__cause__ is not None
        assert arrived.__cause__.__context__ is arrived

    @pytest.mark.parametrize("kind", [ValueError, OwnNew, OwnReduce])
    def test_two_thousand_causes(self, kind: Callable[[int], BaseException]) -> None:
        first = error = kind(0)
        for number in range(1, 2000):
            error.__cause__ = kind(number)
            error = error.__cause__
        arrived: BaseException | None = travelled(first)
        for number in range(2000):
            assert arrived is not None
            assert arrived.args == (number,)
            arrived = arrived.__cause__
        assert arrived is None

    @pytest.mark.parametrize("kind", [ValueError, OwnReduce])
    def test_two_thousand_as_arguments(self, kind: Callable[[object], BaseException]) -> None:
        error = kind(0)
        for _ in range(1999):
            error = kind(error)
        arrived = travelled(error)
        for _ in range(1999):
            arrived = arrived.args[0]
        assert arrived.args == (0,)

    def test_two_thousand_groups_in_each_other(self) -> None:
        error: Exception = ValueError(0)
        for number in range(1, 2000):
            members: list[Exception] = [error]
            error = ExceptionGroup(f"{number}", members)
        arrived = decode(encode(error))
        for _ in range(1, 2000):
            assert isinstance(arrived, ExceptionGroup)
            arrived = arrived.exceptions[0]
        assert arrived.args == (0,)


class TestGroups:
    def test_members_one_by_one(self) -> None:
        inner: ExceptionGroup[Exception] = ExceptionGroup(
            "inner", [raised(OwnInit(1, detail="x")), raised(KeyError("k"))]
        )
        inner.exceptions[0].add_note("note")
        members: list[Exception] = [inner, ValueError("v")]
        error = raised(ExceptionGroup("outer", members))
        arrived = travelled(error)
        assert arrived.message == "outer"
        assert printed(arrived) == printed(error)
        assert isinstance(arrived.exceptions[0], ExceptionGroup)
        assert same(arrived.exceptions[0].exceptions[0], inner.exceptions[0])
        assert arrived.args[1][0] is arrived.exceptions[0]

    def test_own_groups(self) -> None:
        arrived = travelled(own_group([ValueError("x"), KeyError("y")], 7))
        assert arrived.code == 7
        part = arrived.subgroup(ValueError)
        assert isinstance(part, OwnGroup)
        assert part.code == 7

    def test_groups_of_base_exceptions(self) -> None:
        arrived = travelled(BaseExceptionGroup("x", [KeyboardInterrupt(), SystemExit(3)]))
        assert arrived.exceptions[1].code == 3  # type: ignore[union-attr]

    def test_a_member_that_is_also_the_cause(self) -> None:
        member = ValueError("x")
        group = ExceptionGroup("x", [member, member])
        group.__cause__ = member
        member.__context__ = group
        arrived = travelled(group)
        assert arrived.exceptions[0] is arrived.exceptions[1] is arrived.__cause__
        assert arrived.exceptions[0].__context__ is arrived


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
nested = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
kinds = st.sampled_from([ValueError, KeyError, OSError, RuntimeError, Slotted, RaisingReduce, KeyboardInterrupt])


@st.composite
def exceptions(draw: st.DrawFn) -> BaseException:
    made: list[Any] = []
    for _ in range(draw(st.integers(1, 6))):
        kind: Any = draw(kinds)
        arguments = [draw(nested)] if kind is Slotted else draw(st.lists(nested, max_size=3))
        error = kind(*arguments)
        vars(error).update(draw(st.dictionaries(st.text().filter(lambda name: name[:2] != "__"), nested, max_size=3)))
        for note in draw(st.lists(st.text(), max_size=2)):
            error.add_note(note)
        as_group: bool = draw(st.booleans())
        if made and as_group:
            error = BaseExceptionGroup(draw(st.text()), draw(st.lists(st.sampled_from(made), min_size=1, max_size=3)))
        made.append(error)
    for error in made:
        # Any to any: chains, shared ones, circles.
        error.__cause__ = draw(st.none() | st.sampled_from(made))
        error.__context__ = draw(st.none() | st.sampled_from(made))
        error.__suppress_context__ = draw(st.booleans())
    last: BaseException = made[-1]
    return last


# A busy machine must not decide.
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(exceptions())
def test_any_exception_arrives_unchanged(error: BaseException) -> None:
    pairs, seen = [(travelled(error), error)], dict[int, BaseException]()
    while pairs:
        arrived, original = pairs.pop()
        if id(original) in seen:
            assert seen[id(original)] is arrived
            continue
        seen[id(original)] = arrived
        assert type(arrived) is type(original)
        assert repr(vars(arrived)) == repr(vars(original))
        assert arrived.__suppress_context__ == original.__suppress_context__
        if isinstance(original, BaseExceptionGroup):
            assert isinstance(arrived, BaseExceptionGroup)
            assert arrived.message == original.message
            pairs += zip(arrived.exceptions, original.exceptions, strict=True)
        else:
            assert arrived.args == original.args
        for name in ("__cause__", "__context__"):
            assert (getattr(arrived, name) is None) == (getattr(original, name) is None)
            if getattr(original, name) is not None:
                pairs.append((getattr(arrived, name), getattr(original, name)))


def printed(error: BaseException) -> str:
    """What Python prints, without the marks under the columns, which don't travel."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line for line in lines if not line.strip(" |") or line.strip(" |~^"))


def names(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def outer(depth: int) -> None:
    if depth:
        outer(depth - 1)
    inner()


def inner() -> None:
    raise OwnInit(1, detail="from inner")


def caught_from(function: Callable[..., object], *arguments: object) -> BaseException:
    try:
        function(*arguments)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


class TestTracebacks:
    def test_frames_and_source_lines(self) -> None:
        error = caught_from(outer, 3)
        arrived = travelled(error)
        assert names(arrived) == ["caught_from", "outer", "outer", "outer", "outer", "inner"]
        assert printed(arrived) == printed(error)
        assert 'raise OwnInit(1, detail="from inner")' in printed(arrived)

    def test_frames_without_source(self) -> None:
        error = caught_from(eval, compile("(lambda: 1 / 0)()", "<nowhere>", "eval"))
        assert printed(travelled(error)) == printed(error)
        assert 'File "<nowhere>", line 1, in <lambda>' in printed(error)

    def test_none(self) -> None:
        assert travelled(ValueError("x")).__traceback__ is None

    def test_twice(self) -> None:
        error = caught_from(outer, 3)
        assert printed(travelled(travelled(error))) == printed(error)

    def test_raised_again_it_grows_as_ever(self) -> None:
        arrived = caught_from(raise_it, travelled(caught_from(inner)))
        assert names(arrived) == ["caught_from", "raise_it", "caught_from", "inner"]

    def test_deep_ones(self) -> None:
        error = caught_from(forever)
        arrived = travelled(error)
        assert names(arrived) == names(error)
        assert len(names(arrived)) > 500

    def test_frames_hold_nothing_of_this_process(self) -> None:
        frame = travelled(caught_from(inner)).__traceback__.tb_frame  # type: ignore[union-attr]
        assert frame.f_back is None
        assert frame.f_locals == {}
        assert set(frame.f_globals) == {"__builtins__"}

    def test_tools_can_read_it(self) -> None:
        arrived = travelled(caught_from(outer, 1))
        assert arrived.__traceback__ is not None
        frames = inspect.getinnerframes(arrived.__traceback__)
        assert [frame.function for frame in frames] == ["caught_from", "outer", "outer", "inner"]
        stack = traceback.StackSummary.extract(traceback.walk_tb(arrived.__traceback__), capture_locals=True)
        assert stack[-1].name == "inner"
        traceback.clear_frames(arrived.__traceback__)
        assert pytest.ExceptionInfo.from_exception(arrived).getrepr(style="long").reprcrash is not None

    def test_rich_can_print_it(self) -> None:
        rich_console = pytest.importorskip("rich.console")
        rich_traceback = pytest.importorskip("rich.traceback")
        arrived = travelled(caught_from(inner))
        shown = rich_traceback.Traceback.from_exception(type(arrived), arrived, arrived.__traceback__, show_locals=True)
        console = rich_console.Console(file=io.StringIO(), width=200)
        console.print(shown)
        assert "in inner" in console.file.getvalue()

    def test_the_interpreter_prints_it_at_its_end(self, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(
            "from turnout._failures import decode, encode\n"
            "def body():\n    raise KeyError('from the body')\n"
            "try:\n    body()\nexcept KeyError as error:\n    raise decode(encode(error)) from None\n"
        )
        done = run_python(tmp_path, "program.py")
        assert done.returncode == 1
        lines = done.stderr.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        body = next(at for at, line in enumerate(lines) if line.endswith("line 3, in body"))
        assert lines[body + 1] == "    raise KeyError('from the body')"
        assert lines[-1] == "KeyError: 'from the body'"


def raise_it(error: BaseException) -> None:
    raise error


def forever() -> None:
    forever()


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": ":".join([str(CORE), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


class TestRefusals:
    def test_the_part_is_named_and_the_original_kept(self) -> None:
        error = caught_from(raise_it, ValueError("bad", {"lock": LOCK}))
        with pytest.raises(SerializationError) as caught:
            encode(error, "task 'load-0'")
        text = str(caught.value)
        assert text.startswith("The exception ValueError raised by task 'load-0' can't be pickled: ")
        assert "error.args[1]['lock'] is a _thread.lock" in text
        assert "in raise_it" in text
        assert "ValueError: ('bad', {'lock': <unlocked _thread.lock" in text

    def test_attributes_and_causes(self) -> None:
        cause = KeyError("k")
        cause.held = [LOCK]  # type: ignore[attr-defined]
        error = ValueError("bad")
        error.__cause__ = cause
        with pytest.raises(SerializationError) as caught:
            encode(ExceptionGroup("x", [error]))
        text = str(caught.value)
        assert "The exception KeyError raised by the task can't" in text
        assert "error.exceptions[0].__cause__.held[0] is a _thread.lock" in text

    def test_far_down_a_chain(self) -> None:
        first = error = ValueError(0)
        for _ in range(1500):
            error.__cause__ = error = ValueError(0)
        error.args = (LOCK,)
        with pytest.raises(SerializationError, match=r"error\.\.\.\.\.__cause__\.args\[0\] is a _thread.lock"):
            encode(first)

    def test_slots(self) -> None:
        error = Slotted(1)
        error.left = LOCK
        with pytest.raises(SerializationError, match=r"error\.left is a _thread.lock"):
            encode(error)

    def test_local_classes(self) -> None:
        class Local(Exception):
            lock = LOCK

        with pytest.raises(SerializationError, match=r"Local.*\.lock is a _thread.lock"):
            encode(Local())

    def test_the_refusal_itself_can_travel(self) -> None:
        refusal = refused(ValueError(LOCK))
        assert refusal.__context__ is None
        assert str(travelled(refusal)) == str(refusal)

    def test_what_is_too_deep(self) -> None:
        value: list[object] = []
        for _ in range(10_000):
            value = [value]
        with pytest.raises(SerializationError, match="recursion"):
            encode(ValueError(value))

    def test_an_exception_that_cannot_be_looked_at(self) -> None:
        with pytest.raises(SerializationError, match="don't look at me"):
            encode(Unreadable(1))

    def test_an_exception_that_cannot_even_be_printed(self) -> None:
        with pytest.raises(SerializationError, match="Mute"):
            encode(Mute(LOCK))


def refused(error: BaseException) -> SerializationError:
    try:
        raise error
    except BaseException as caught:
        try:
            encode(caught)
        except SerializationError as refusal:
            return refusal
    raise AssertionError("it travelled")


MODULE = """
class Gone(Exception):
    def __init__(self, a, b):
        super().__init__(a + b)

class Value:
    def __eq__(self, other):
        return type(other) is Value

class GoneReducing(Exception):
    def __reduce__(self):
        return GoneReducing, self.args

NOT_A_CLASS = 3
def fail(error):
    raise error
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    name = f"errors_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def forget(module: Any) -> None:
    """Make a module as if it had never been installed here."""
    del sys.modules[module.__name__]
    Path(module.__file__).unlink()
    importlib.invalidate_caches()


class TestStandIns:
    def test_a_class_that_is_not_here(self, module: Any) -> None:
        error = caught_from(module.fail, module.Gone("the ", "text"))
        error.__cause__ = raised(KeyError("cause"))
        encoded = encode(error)
        forget(module)
        arrived = decode(encoded)
        assert type(arrived) is SerializationError
        text = str(arrived)
        assert f"The exception {module.__name__}.Gone can't be rebuilt in this process (ModuleNotFoundError" in text
        assert "Make its class importable here" in text
        assert text.endswith(f"{module.__name__}.Gone: the text")
        assert ", in fail\n" in text
        assert names(arrived) == ["caught_from", "fail"]
        assert same(arrived.__cause__, error.__cause__)  # type: ignore[arg-type]

    def test_only_the_one_that_is_missing(self, module: Any) -> None:
        error = ExceptionGroup("x", [ValueError("v"), module.Gone("a", "b")])
        error.__cause__ = error.exceptions[1]
        encoded = encode(error)
        forget(module)
        arrived = decode(encoded)
        assert isinstance(arrived, ExceptionGroup)
        assert same(arrived.exceptions[0], error.exceptions[0])
        assert type(arrived.exceptions[1]) is SerializationError
        assert arrived.__cause__ is arrived.exceptions[1]

    def test_classes_with_their_own_reduction(self, module: Any) -> None:
        encoded = encode(module.GoneReducing("text"))
        forget(module)
        assert str(decode(encoded)).endswith("GoneReducing: text")

    def test_a_name_that_is_no_class_of_exceptions_here(self, module: Any) -> None:
        encoded = encode(module.Gone("a", "b"))
        module.Gone = 3
        assert "Gone is no class of exceptions" in str(decode(encoded))
        del module.Gone
        assert "AttributeError" in str(decode(encoded))

    def test_arguments_that_are_not_here(self, module: Any) -> None:
        encoded, hiding = encode(ValueError("x", module.Value())), encode(WithProperty(module.Value()))
        forget(module)
        assert "can't be loaded here" in vars(decode(hiding))["__notes__"][0]
        arrived = decode(encoded)
        assert type(arrived) is ValueError
        assert arrived.args[0].startswith("('x', <errors_of_")
        assert "can't be loaded here: ModuleNotFoundError" in arrived.__notes__[0]

    def test_classes_that_another_process_made(self, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(
            "import pickle\nfrom turnout._failures import encode\n"
            "class Local(Exception):\n"
            "    def __init__(self, a, b): self.sum = a + b\n"
            "try:\n    raise Local(1, 2)\nexcept Local as error:\n"
            "    pickle.dump(encode(error), open('encoded', 'wb'))\n"
        )
        done = run_python(tmp_path, "program.py")
        assert done.returncode == 0, done.stderr
        arrived: Any = decode(pickle.loads((tmp_path / "encoded").read_bytes()))
        assert type(arrived).__name__ == "Local"
        assert arrived.sum == 3
        assert "raise Local(1, 2)" in printed(arrived)


def test_classes_of_main_come_back_as_the_same_class(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import pickle, subprocess, sys\n"
        "from turnout._failures import decode\n"
        "from turnout._serialization import pack_function\n"
        "class Own(Exception): pass\n"
        "def body(): raise Own(3)\n"
        "worker = 'import sys, pickle; from turnout._failures import encode\\n' \\\n"
        "    'try: pickle.load(sys.stdin.buffer)()\\n' \\\n"
        "    'except Exception as error: pickle.dump(encode(error), sys.stdout.buffer)'\n"
        "done = subprocess.run([sys.executable, '-c', worker], input=pack_function(body)[1], stdout=-1, check=True)\n"
        "try: raise decode(pickle.loads(done.stdout))\n"
        "except Own as error: print('caught', error)\n"
    )
    done = run_python(tmp_path, "program.py")
    assert done.stdout == "caught 3\n", done.stderr


def caught_in(*modules: str, error: BaseException) -> BaseException:
    """Raise an error below frames of those modules, the outermost first."""
    body = functools.partial(raise_it, error) if modules[-1] == "user" else None
    for module in reversed(modules[:-1] if body else modules):
        space: dict[str, Any] = {"__name__": module, "error": error, "body": body}
        source = "def run():\n    return body()\n" if body else "def run():\n    raise error\n"
        exec(compile(source, module, "exec"), space)
        body = space["run"]
    assert body is not None
    caught = caught_from(body)
    # The frame of caught_from itself.
    assert caught.__traceback__ is not None
    return caught.with_traceback(caught.__traceback__.tb_next)


def modules_of(error: BaseException) -> list[str]:
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return ["user" if file == __file__ else file for file in files]


class TestOwnFrames:
    def test_leading_ones_go(self) -> None:
        error = caught_in("turnout.worker", "turnout._engine", "turnout_runners.thread.pool", "user", error=KeyError())
        assert without_own_frames(error) is error
        assert modules_of(error) == ["user"]

    def test_those_further_down_stay(self) -> None:
        error = caught_in("turnout.worker", "flows", "turnout._future", "turnout", "user", error=KeyError())
        assert modules_of(without_own_frames(error)) == ["flows", "turnout._future", "turnout", "user"]

    @pytest.mark.parametrize("module", ["turnout.testing", "turnout.testing._bodies", "turnoutish", "my.turnout"])
    def test_frames_of_others_stay(self, module: str) -> None:
        error = caught_in("turnout.worker", module, "user", error=KeyError())
        assert modules_of(without_own_frames(error)) == [module, "user"]

    def test_errors_raised_on_purpose_lose_all(self) -> None:
        error = caught_in("turnout.worker", "turnout._future", error=WouldDeadlockError())
        assert without_own_frames(error).__traceback__ is None

    def test_faults_of_turnout_itself_keep_all(self) -> None:
        error = caught_in("turnout.worker", "turnout._future", error=KeyError())
        assert modules_of(without_own_frames(error)) == ["turnout.worker", "turnout._future"]

    def test_errors_that_it_refers_to(self) -> None:
        cause, context, member = (caught_in("turnout", "user", error=KeyError()) for _ in range(3))
        error = caught_in("turnout", "user", error=BaseExceptionGroup("x", [member]))
        error.__cause__, error.__context__, member.__context__ = cause, context, error
        without_own_frames(error)
        for one in (error, cause, context, member):
            assert modules_of(one) == ["user"]

    def test_errors_that_forbid_to_set_attributes(self) -> None:
        assert modules_of(without_own_frames(caught_in("turnout", "user", error=Frozen(1, [])))) == ["user"]

    def test_errors_that_were_never_raised(self) -> None:
        assert without_own_frames(KeyError()).__traceback__ is None

    def test_travelled_frames_are_not_its_own(self) -> None:
        error = travelled(caught_in("turnout.worker", "user", error=KeyError()))
        assert modules_of(without_own_frames(error)) == ["turnout.worker", "user"]
