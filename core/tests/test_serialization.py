import collections
import dataclasses
import functools
import importlib
import io
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from turnout import _serialization
from turnout._serialization import (
    PLAIN_TYPES,
    Parcel,
    Pickler,
    SharedParcel,
    dumps,
    explain,
    explain_load,
    is_plain,
    load_function,
    pack_function,
    reference_of,
)
from turnout.errors import SerializationError

LOCK = threading.Lock()
# A busy machine must not decide.
unhurried = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def by_protocol_4(parcel: Parcel) -> Parcel:
    """Carry a parcel as concurrent.futures does."""
    return carried(pickle.dumps(parcel, 4))


def in_band(parcel: Parcel) -> Parcel:
    return carried(pickle.dumps(parcel, 5))


def out_of_band(parcel: Parcel) -> Parcel:
    """Carry a parcel over memory that the receiver may write to."""
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(parcel, 5, buffer_callback=buffers.append)
    return carried(stream, [bytearray(buffer.raw()) for buffer in buffers])


def read_only(parcel: Parcel) -> Parcel:
    """Carry a parcel as an object store does: over memory that nobody may write to."""
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(parcel, 5, buffer_callback=buffers.append)
    return carried(stream, [memoryview(bytes(buffer.raw())) for buffer in buffers])


def shared(parcel: Parcel) -> SharedParcel:
    return SharedParcel(parcel.data, parcel.buffers)


def carried(stream: bytes, buffers: list[Any] | None = None) -> Parcel:
    parcel = pickle.loads(stream, buffers=buffers)
    assert isinstance(parcel, Parcel)
    return parcel


WAYS = [by_protocol_4, in_band, out_of_band]
Way = Callable[[Parcel], Parcel]
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
nested = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner), max_leaves=20
)
arrays = np_st.arrays(np_st.scalar_dtypes(), np_st.array_shapes(min_side=0, max_side=20))


class TestParcel:
    @unhurried
    @given(value=nested, way=st.sampled_from(WAYS))
    def test_nested_values_arrive_equal(self, value: object, way: Way) -> None:
        assert repr(way(dumps(value)).load()) == repr(value)

    @unhurried
    @given(array=arrays, way=st.sampled_from(WAYS))
    def test_arrays_arrive_equal_and_writable(self, array: np.ndarray[Any, Any], way: Way) -> None:
        arrived = way(dumps({"array": array})).load()["array"]
        # numpy's own pickling turns some dates to this machine's byte order.
        expected = pickle.loads(pickle.dumps(array, 5))
        assert arrived.dtype == expected.dtype
        assert arrived.shape == expected.shape
        assert arrived.tobytes() == expected.tobytes()
        assert arrived.flags.writeable

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("size", [4, 100])
    def test_memory_order_of_arrays_is_kept(self, way: Way, order: Any, size: int) -> None:
        array = np.array(np.arange(size * size).reshape(size, size), order=order)
        arrived = way(dumps(array)).load()
        assert arrived.flags.f_contiguous == array.flags.f_contiguous
        assert (arrived == array).all()
        arrived[0, 0] = 7

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("size", [4, 1000])
    def test_read_only_arrays_stay_read_only(self, way: Way, size: int) -> None:
        array = np.arange(size)
        array.flags.writeable = False
        assert not way(dumps(array)).load().flags.writeable

    def test_object_arrays_and_strided_arrays(self) -> None:
        value = [np.array([{"a": 1}, None], dtype=object), np.arange(4000)[::2]]
        first, second = in_band(dumps(value)).load()
        assert first[0] == {"a": 1}
        assert (second == value[1]).all()

    def test_large_buffers_are_not_copied(self) -> None:
        array = np.arange(1000)
        parcel = dumps(array)
        assert len(parcel.buffers) == 1
        array[0] = 99
        assert parcel.load()[0] == 99

    def test_small_buffers_stay_in_the_stream(self) -> None:
        assert dumps(np.arange(4)).buffers == ()

    def test_received_buffers_are_not_copied(self) -> None:
        buffers: list[pickle.PickleBuffer] = []
        stream = pickle.dumps(dumps(np.arange(1000)), 5, buffer_callback=buffers.append)
        received = [bytearray(buffer.raw()) for buffer in buffers]
        array = carried(stream, received).load()
        array[0] = 99
        assert any(np.frombuffer(buffer, dtype=array.dtype)[0] == 99 for buffer in received)

    def test_long_streams_travel_out_of_band(self) -> None:
        buffers: list[pickle.PickleBuffer] = []
        stream = pickle.dumps(dumps("x" * 5000), 5, buffer_callback=buffers.append)
        assert len(stream) < 500
        assert len(buffers) == 1

    def test_short_streams_travel_in_band(self) -> None:
        buffers: list[pickle.PickleBuffer] = []
        pickle.dumps(dumps("x"), 5, buffer_callback=buffers.append)
        assert buffers == []

    def test_carried_twice_arrays_are_still_writable(self) -> None:
        parcel = in_band(out_of_band(by_protocol_4(dumps(np.arange(1000)))))
        parcel.load()[0] = 1

    def test_objects_of_shared_parcels_share_no_memory(self) -> None:
        parcel = shared(dumps(np.arange(1000)))
        parcel.load()[0] = 99
        assert parcel.load()[0] == 0

    def test_objects_of_shared_parcels_are_writable_though_they_arrived_read_only(self) -> None:
        parcel = read_only(dumps(np.arange(1000)))
        assert not parcel.load().flags.writeable
        assert shared(parcel).load().flags.writeable

    def test_objects_of_shared_parcels_stay_read_only_if_they_were(self) -> None:
        array = np.arange(1000)
        array.flags.writeable = False
        assert not shared(read_only(dumps(array))).load().flags.writeable

    @pytest.mark.parametrize("kind", [Parcel, SharedParcel])
    def test_read_only_objects_lie_over_the_parcels_own_buffers(self, kind: type[Parcel]) -> None:
        array = np.arange(1000)
        parcel = dumps(array)
        loaded = kind(parcel.data, parcel.buffers).load(read_only=True)
        assert not loaded.flags.writeable
        assert np.shares_memory(loaded, array)

    def test_owned_parcels_share_no_memory(self) -> None:
        array = np.arange(1000)
        assert not np.shares_memory(shared(dumps(array)).owned().load(), array)

    def test_size_counts_stream_and_buffers(self) -> None:
        parcel = dumps(np.zeros(1000))
        assert 8000 < parcel.nbytes < 8500
        assert in_band(parcel).nbytes == parcel.nbytes
        assert f"{parcel.nbytes} bytes, 1 buffers" in repr(parcel)


class TestIsPlain:
    @pytest.mark.parametrize("value", [1, 10**50, 1.5, 1j, True, None, "x" * 4096, b"x" * 4096])
    def test_small_values_of_exact_types(self, value: object) -> None:
        assert is_plain(value)
        assert type(value) in PLAIN_TYPES

    @pytest.mark.parametrize(
        "value",
        [[], (), {}, object(), int, "x" * 4097, b"x" * 4097, bytearray(), np.float64(1), type("S", (str,), {})()],
    )
    def test_all_others_are_not(self, value: object) -> None:
        assert not is_plain(value)


MODULE = """
import functools
import threading

LOCK = threading.Lock()

class Wrapped:
    def __init__(self, fn):
        self.fn = fn
        self.__module__ = fn.__module__
        self.__qualname__ = fn.__qualname__

@Wrapped
def decorated(x):
    with LOCK:
        return x + 1

def plain(x):
    return x + 1

class Holder:
    @Wrapped
    def method(self, x):
        with LOCK:
            return x + 2

other_name = Wrapped(plain)

@functools.lru_cache(maxsize=7)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

def far_fibonacci():
    return fibonacci(90)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    name = f"tasks_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


class TestFunctions:
    def test_a_decorated_function_travels_by_the_name_of_its_decorator(self, module: Any) -> None:
        _, blob = pack_function(module.decorated.fn)
        assert len(blob) < 200
        assert pickle.loads(blob) is module.decorated.fn

    def test_a_decorated_method_does_too(self, module: Any) -> None:
        assert pickle.loads(pack_function(module.Holder.method.fn)[1]) is module.Holder.method.fn

    def test_another_process_finds_it(self, module: Any, tmp_path: Path) -> None:
        (tmp_path / "blob").write_bytes(pack_function(module.decorated.fn)[1])
        program = "import pickle; print(pickle.load(open('blob', 'rb'))(41))"
        core = str(Path(_serialization.__file__).parent.parent)
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={"PYTHONPATH": core + ":" + ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "42\n", done.stderr

    def test_inside_containers_too(self, module: Any) -> None:
        assert dumps([module.decorated.fn]).load()[0] is module.decorated.fn

    def test_a_cached_function_goes_by_name_if_there_is_one(self, module: Any) -> None:
        assert dumps(module.fibonacci).load() is module.fibonacci

    def test_a_cached_function_goes_by_value_with_an_empty_cache(self, module: Any) -> None:
        assert module.fibonacci(5) == 5
        cloudpickle.register_pickle_by_value(module)
        try:
            packed = pack_function(module.far_fibonacci)[1]
        finally:
            cloudpickle.unregister_pickle_by_value(module)
        arrived = pickle.loads(packed)
        cached = arrived.__globals__["fibonacci"]
        assert cached is not module.fibonacci
        assert cached.cache_info()[2:] == (7, 0)
        # With two of them, each with a cache of its own, this would take for ever.
        assert arrived() == 2880067194370816120
        assert cached.__wrapped__.__globals__["fibonacci"] is cached

    def test_by_value_if_its_module_is_registered_so(self, module: Any) -> None:
        module.decorated.fn.__globals__["LOCK"] = FakeLock()
        cloudpickle.register_pickle_by_value(module)
        try:
            arrived = pickle.loads(pack_function(module.decorated.fn)[1])
            assert reference_of(module.decorated) is None
            assert reference_of(module.plain) is None
        finally:
            cloudpickle.unregister_pickle_by_value(module)
        assert arrived is not module.decorated.fn
        assert arrived(1) == 2

    def test_by_value_if_a_parent_package_is_registered_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cloudpickle, "list_registry_pickle_by_value", lambda: {"turnout"})
        assert reference_of(dumps) is None
        assert reference_of(Path) is not None

    def test_by_value_if_its_module_is_main(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        function = types.FunctionType(module.plain.__code__, {})
        function.__module__ = "__main__"
        monkeypatch.setattr(sys.modules["__main__"], "plain", types.SimpleNamespace(fn=function), raising=False)
        assert pickle.loads(pack_function(function)[1]) is not function

    def test_by_value_if_its_module_was_made_by_hand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = types.ModuleType("made_by_hand")
        monkeypatch.setitem(sys.modules, "made_by_hand", made)
        exec(MODULE.replace("with LOCK:", "if True:"), vars(made))
        arrived = pickle.loads(pack_function(made.decorated.fn)[1])
        assert arrived is not made.decorated.fn
        assert arrived(1) == 2

    def test_by_value_if_the_name_leads_elsewhere(self, module: Any) -> None:
        old = module.plain
        module.plain = lambda x: x
        assert pickle.loads(pack_function(old)[1])(1) == 2

    def test_lambdas_and_closures(self) -> None:
        step = 5
        assert pickle.loads(pack_function(lambda x: x + step)[1])(1) == 6

    def test_a_reference_leads_to_the_object_itself(self, module: Any) -> None:
        assert reference_of(module.plain) == (module.__name__, "plain")
        assert reference_of(module.decorated) == (module.__name__, "decorated")
        assert reference_of(module.Holder) == (module.__name__, "Holder")
        assert reference_of(module.decorated.fn) is None
        assert reference_of(module.other_name) is None

    @pytest.mark.parametrize("value", [3, lambda: None, types.SimpleNamespace(__module__=[], __qualname__="x")])
    def test_what_has_no_name_has_no_reference(self, value: object) -> None:
        assert reference_of(value) is None


class FakeLock:
    def __enter__(self) -> None: ...
    def __exit__(self, *exc_info: object) -> None: ...


class TestLoadFunction:
    def test_one_digest_gives_one_object(self) -> None:
        digest, blob = pack_function(lambda x: x * 2)
        assert len(digest) == 16
        first = load_function(digest, blob)
        assert first(4) == 8
        assert load_function(digest, b"") is first

    def test_different_functions_differ_in_digest(self) -> None:
        assert pack_function(lambda x: x * 2)[0] != pack_function(lambda x: x * 3)[0]

    def test_threads_get_the_same_object(self) -> None:
        digest, blob = pack_function(lambda x: x * 4)
        barrier, found = threading.Barrier(8), []

        def load() -> None:
            barrier.wait()
            found.append(load_function(digest, blob))

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 1
        assert len(found) == 8

    def test_the_least_recently_used_go_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_serialization, "_CACHED_FUNCTIONS", 2)
        monkeypatch.setattr(_serialization, "_functions", collections.OrderedDict())
        blob = pack_function(lambda: None)[1]
        a = load_function(b"a", blob)
        b = load_function(b"b", blob)
        assert load_function(b"a", blob) is a
        load_function(b"c", blob)
        assert load_function(b"a", blob) is a
        assert load_function(b"b", blob) is not b

    def test_a_missing_module_is_named_with_what_to_do(self, module: Any, tmp_path: Path) -> None:
        digest, blob = pack_function(module.plain)
        del sys.modules[module.__name__]
        (tmp_path / f"{module.__name__}.py").unlink()
        importlib.invalidate_caches()
        with pytest.raises(SerializationError, match="The function of task 'x-0' can't be loaded") as caught:
            load_function(digest, blob, "The function of task 'x-0'")
        assert f"The module {module.__name__!r} can't be imported there. Install it" in str(caught.value)
        assert f"cloudpickle.register_pickle_by_value({module.__name__})" in str(caught.value)
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)

    def test_another_version_of_a_module_is_told(self, module: Any) -> None:
        digest, blob = pack_function(module.plain)
        del module.plain
        with pytest.raises(SerializationError, match=r"AttributeError.*same versions"):
            load_function(digest, blob)

    def test_a_function_that_was_never_sent(self) -> None:
        with pytest.raises(SerializationError, match="The function of a task never arrived"):
            load_function(b"never sent", b"")

    def test_a_torn_blob_is_told(self) -> None:
        with pytest.raises(SerializationError, match="can't be loaded"):
            load_function(b"torn", b"\x80\x05")

    def test_other_things_that_cannot_be_loaded(self) -> None:
        error = explain_load(
            ModuleNotFoundError("No module named 'a.b'", name="a.b"), "The parameter 'x' of task 't-0'"
        )
        assert str(error).startswith("The parameter 'x' of task 't-0' can't be loaded in the process that needs it")
        assert "register_pickle_by_value(a)" in str(error)


@dataclasses.dataclass
class Config:
    inner: object
    name: str = "x"


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self, left: object, right: object) -> None:
        self.left, self.right = left, right


class Dropping:
    """Leaves its lock at home, but not what else it holds."""

    def __init__(self) -> None:
        self.lock = LOCK
        self.held = [LOCK]

    def __getstate__(self) -> dict[str, object]:
        return {"held": self.held}


class Reducing:
    def __reduce__(self) -> Any:
        return Reducing, (1, LOCK)


class Refusing:
    def __reduce__(self) -> Any:
        raise RuntimeError("I stay here")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class RefusingMutely:
    def __reduce__(self) -> Any:
        raise Mute

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class Words(dict[str, object]): ...


Pair = collections.namedtuple("Pair", ["left", "right"])


def uses_lock() -> object:
    return LOCK


def closure_over(value: object) -> Callable[[], object]:
    return lambda: value


def in_main(function: Any) -> Any:
    """Make a function travel by value."""
    function.__module__ = "__main__"
    return function


CASES: list[tuple[object, str]] = [
    (LOCK, "config is a _thread.lock (TypeError: cannot pickle '_thread.lock' object)"),
    ({"a": 1, "lock": Config(LOCK)}, "config['lock'].inner is a _thread.lock"),
    ([1, [2, (3, LOCK)]], "config[1][1][1] is a _thread.lock"),
    (Slotted(1, {"x": LOCK}), "config.right['x'] is a _thread.lock"),
    (Dropping(), "config.held[0] is a _thread.lock"),
    (Reducing(), "config.__reduce__()[1][1] is a _thread.lock"),
    ({LOCK: 1}, "list(config)[0] is a _thread.lock"),
    ({LOCK}, "list(config)[0] is a _thread.lock"),
    (collections.OrderedDict(a=1, b=LOCK), "config['b'] is a _thread.lock"),
    (collections.defaultdict(list, a=[LOCK]), "config['a'][0] is a _thread.lock"),
    (collections.deque([1, LOCK]), "config[1] is a _thread.lock"),
    (Pair(1, LOCK), "config[1] is a _thread.lock"),
    (Words(a=LOCK), "config['a'] is a _thread.lock"),
    (functools.partial(print, 1, LOCK), "config.args[1] is a _thread.lock"),
    (functools.partial(closure_over, value=LOCK), "config.keywords['value'] is a _thread.lock"),
    (Config(LOCK).__eq__, "config.__self__.inner is a _thread.lock"),
    (closure_over([LOCK]), "config.closure['value'][0] is a _thread.lock"),
    (ValueError("x", LOCK), "config.args[1] is a _thread.lock"),
    (np.array([1, LOCK], dtype=object), "is a _thread.lock"),
    ((n for n in range(3)), "config is a generator"),
    (io.TextIOWrapper(io.BytesIO()), "config is a _io.TextIOWrapper"),
    ([Refusing()], "is a test_serialization.Refusing (RuntimeError: I stay here)"),
    ([RefusingMutely()], "(Mute: its text can't be had)"),
    ({RefusingMutely(): LOCK}, "can't be pickled"),
]


class TestExplain:
    @pytest.mark.parametrize(("value", "expected"), CASES, ids=[expected for _, expected in CASES])
    def test_the_smallest_part_is_named(self, value: object, expected: str) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever pickling raises
            dumps(value)
        error = explain(value, caught.value, "The parameter 'config' of task 'load-0'", "config")
        assert type(error) is SerializationError
        text = str(error).replace(__name__, "test_serialization")
        assert text.startswith("The parameter 'config' of task 'load-0' can't be pickled: ")
        assert expected in text
        assert text.endswith('pass something that can be pickled, or use task_runner="thread".')

    def test_globals_that_a_function_uses(self) -> None:
        function = types.FunctionType(uses_lock.__code__, {"LOCK": LOCK})
        assert "f.globals['LOCK'] is a _thread.lock" in explained(in_main(function))

    def test_defaults_and_attributes_of_functions(self) -> None:
        def with_default(lock: object = LOCK) -> object:
            return lock

        assert "f.__defaults__[0] is a _thread.lock" in explained(with_default)
        function = closure_over(1)
        vars(function)["lock"] = LOCK
        assert "f.__dict__['lock'] is a _thread.lock" in explained(function)

    def test_recursive_functions(self) -> None:
        def countdown(n: int) -> object:
            return countdown(n - 1) if n else LOCK

        function = types.FunctionType(countdown.__code__, {"LOCK": LOCK}, "countdown", None, (types.CellType(),))
        assert function.__closure__ is not None
        assert "f.globals['LOCK']" in explained(in_main(function))
        function.__closure__[0].cell_contents = function
        assert "f.globals['LOCK']" in explained(function)

    def test_local_classes(self) -> None:
        class Local:
            lock = LOCK

        assert ".lock is a _thread.lock" in explained(Local())

    def test_one_bad_item_among_very_many(self) -> None:
        value: list[object] = list(range(200_000))
        value[123_456] = LOCK
        assert "f[123456] is a _thread.lock" in explained(value)

    def test_cycles(self) -> None:
        a, b = Config(None), Config(None)
        a.inner, b.inner = [b, LOCK], a
        assert "f.inner[1] is a _thread.lock" in explained(a)

    def test_a_chain_deeper_than_the_search(self) -> None:
        value: object = LOCK
        for _ in range(80):
            value = [value]
        assert f"f{'[0]' * 50} is a list (TypeError" in explained(value)

    def test_too_deep_to_pickle(self) -> None:
        value: list[object] = []
        for _ in range(10_000):
            value = [value]
        text = explained({"shallow": 1, "tree": value})
        assert "f['tree']" in text
        assert "recursion" in text

    def test_endless_reduction(self) -> None:
        assert "ecursion" in explained(Endless())

    def test_an_error_that_does_not_come_again(self) -> None:
        assert "value is an int (MemoryError: no room)" in str(explain(3, MemoryError("no room"), "The result"))

    def test_long_reasons_are_cut(self) -> None:
        assert len(str(explain(3, ValueError("x" * 100_000), "The result"))) < 1000


class Endless:
    def __reduce__(self) -> Any:
        return Endless, (Endless(),)


def explained(value: object) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever pickling raises
        dumps(value)
    return str(explain(value, caught.value, "The result of task 'x-0'", "f"))


def test_the_pickler_takes_what_cloudpickle_takes() -> None:
    stream = io.BytesIO()
    Pickler(stream, 5).dump([closure_over(3), Config(1), np.arange(3), Slotted])
    function, config, array, slotted = pickle.loads(stream.getvalue())
    assert function() == 3
    assert config == Config(1)
    assert array.tolist() == [0, 1, 2]
    assert slotted is Slotted
