"""The one walk over arguments: which futures are found in them, and what stands in their place afterwards."""

from __future__ import annotations

import enum
import pickle
import random
import re
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import FrozenInstanceError, dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout import FutureList, SerializationError, TaskFuture, allow_failure, quote, task, unmapped
from turnout._arguments import Placeholder, arriving, awaited_futures, find_futures, replace, replace_arguments
from turnout._backends import Backends
from turnout._engine import Engine
from turnout._future import FuturePart
from turnout._state import StateType

T = TypeVar("T")


@task
def source() -> None: ...


ENGINE = Engine(Backends())


def future(number: int = 0, value: Any = None) -> TaskFuture[Any]:
    """Return a future that is over, with a value."""
    made: TaskFuture[Any] = TaskFuture(source, ENGINE.flow_run, number)
    made._data, made._type = value, StateType.COMPLETED
    return made


def told(asked: TaskFuture[Any], allowed: bool) -> str:
    """Return what says which future was asked for, and in which way."""
    return f"{asked._index}{'!' if allowed else ''}"


def replaced(value: Any) -> Any:
    return replace(value, told)


class Pair(NamedTuple):
    left: Any
    right: Any


class Row(tuple[Any, ...]):
    __slots__ = ()


@dataclass
class Plain:
    x: Any
    y: Any = 0


@dataclass(frozen=True)
class Frozen:
    x: Any


@dataclass(slots=True)
class Slotted:
    x: Any
    y: Any = 0


@dataclass(frozen=True, slots=True)
class FrozenSlotted:
    x: Any


@dataclass(kw_only=True)
class Deriving(Plain):
    z: Any


@dataclass
class Boxed(Generic[T]):
    x: T


@dataclass
class Checked:
    x: Any
    made: ClassVar[int] = 0

    def __post_init__(self) -> None:
        Checked.made += 1
        if self.x == "0":
            raise AssertionError("made anew")


@dataclass
class Computed:
    x: Any
    hidden: list[Any] = field(init=False, repr=False)
    unset: Any = field(init=False)

    def __post_init__(self) -> None:
        self.hidden = [self.x]


@dataclass
class WithMore:
    x: Any

    def remember(self, name: str, value: Any) -> WithMore:
        vars(self)[name] = value
        return self


class Names(list[Any]):
    pass


class Ages(dict[str, Any]):
    pass


class Bag(set[Any]):
    pass


class Point(tuple[Any, ...]):  # noqa: SLOT001  (it has attributes)
    def __new__(cls, left: Any, right: Any) -> Point:
        return super().__new__(cls, (left, right))


class Few(frozenset[Any]):
    pass


@dataclass
class Complaint(Exception):
    about: Any


class Base:
    __slots__ = ("z",)


@dataclass(slots=True)
class OnSlots(Base):
    x: Any


@dataclass(frozen=True)
class Named:
    """Hashed by its name alone, so that it may be a key of what it holds."""

    name: Any
    others: Any = field(compare=False)


class Colour(enum.Enum):
    RED = future(99)


# Found


def in_a_list(inner: Any) -> Any:
    return [inner]


def in_a_tuple(inner: Any) -> Any:
    return (1, inner)


def in_a_pair(inner: Any) -> Any:
    return Pair(inner, 2)


def in_a_dict(inner: Any) -> Any:
    return {"key": inner}


def in_a_key(inner: Any) -> Any:
    return {(1, inner): 1}


def in_a_set(inner: Any) -> Any:
    return {inner}


def in_a_frozenset(inner: Any) -> Any:
    return frozenset([inner])


def in_an_ordered_dict(inner: Any) -> Any:
    return OrderedDict([("a", 1), ("b", inner)])


def in_a_defaultdict(inner: Any) -> Any:
    return defaultdict(list, a=inner)


def in_a_row(inner: Any) -> Any:
    return Row((inner, 1))


CONTAINERS = [
    in_a_list,
    in_a_tuple,
    in_a_pair,
    in_a_dict,
    in_a_key,
    in_a_set,
    in_a_frozenset,
    in_an_ordered_dict,
    in_a_defaultdict,
    in_a_row,
    Plain,
    Frozen,
    Slotted,
    FrozenSlotted,
    Boxed,
    Computed,
    partial(Deriving, z=2),
]


@pytest.mark.parametrize("make", CONTAINERS)
def test_futures_are_found_and_replaced_in_containers(make: Any) -> None:
    one = future()
    nested = make(one)
    assert find_futures([nested]) == {one: False}
    result = replaced(nested)
    assert type(result) is type(nested)
    assert find_futures([result]) is None
    assert find_futures([nested]) == {one: False}, "the original is left alone"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([future(1), 2, future(3)], ["1", 2, "3"]),
        ((future(1), (future(2),)), ("1", ("2",))),
        ({"a": future(1), "b": 2}, {"a": "1", "b": 2}),
        ({future(1): "x", 2: 3}, {"1": "x", 2: 3}),
        ({future(1), 2}, {"1", 2}),
        (frozenset([future(1), 2]), frozenset(["1", 2])),
        (Pair(future(1), [future(2)]), Pair("1", ["2"])),
        (Row((1, future(2))), Row((1, "2"))),
        (in_a_key(future(1)), in_a_key("1")),
        (Plain(future(1), [future(2)]), Plain("1", ["2"])),
        (Frozen(future(1)), Frozen("1")),
        (Slotted(future(1), future(2)), Slotted("1", "2")),
        (FrozenSlotted(future(1)), FrozenSlotted("1")),
        (Deriving(future(1), y=3, z=(future(2),)), Deriving("1", y=3, z=("2",))),
        (Boxed({"a": [future(1)]}), Boxed({"a": ["1"]})),
        (future(7), "7"),
    ],
)
def test_what_stands_in_the_place_of_futures(value: Any, expected: Any) -> None:
    result = replaced(value)
    assert result == expected
    assert type(result) is type(expected)


def test_ordered_dicts_keep_their_order() -> None:
    ordered = OrderedDict.fromkeys("zyxabc", 1)
    ordered["x"] = future(5)  # type: ignore[assignment]
    ordered.move_to_end("z")
    result = replaced(ordered)
    assert isinstance(result, OrderedDict)
    assert list(result.items()) == [("y", 1), ("x", "5"), ("a", 1), ("b", 1), ("c", 1), ("z", 1)]


def test_default_dicts_keep_their_factory() -> None:
    result = replaced(defaultdict(list, a=future(5)))
    assert result == {"a": "5"}
    assert result["new"] == []


def test_counters_keep_their_keys() -> None:
    counter: Any = Counter({"a": future(1)})
    assert dict(replaced(counter)) == {"a": "1"}


@pytest.mark.parametrize(
    "value",
    [Names([future(1)]), Ages(a=future(1)), Bag([future(1)]), Point(future(1), 2), Few([future(1)])],
    ids=lambda value: type(value).__name__,
)
def test_subclasses_of_containers_keep_their_class_and_attributes(value: Any) -> None:
    value.note = "kept"
    result = replaced(value)
    assert type(result) is type(value)
    assert result.note == "kept"
    assert find_futures([result]) is None


def test_lists_of_futures_become_plain_lists() -> None:
    result = replaced(FutureList([future(1), future(2)]))
    assert type(result) is list
    assert result == ["1", "2"]


def test_frozen_dataclasses_stay_frozen() -> None:
    result = replaced(Frozen(future(1)))
    with pytest.raises(FrozenInstanceError):
        result.x = 2


def test_dataclasses_are_not_made_anew() -> None:
    original = Checked(future(0))
    made = Checked.made
    assert replaced(original).x == "0"
    assert Checked.made == made


def test_computed_fields_are_kept_and_unset_ones_stay_unset() -> None:
    original = Computed(future(1))
    original.hidden.append(3)
    result = replaced(original)
    assert (result.x, result.hidden) == ("1", ["1", 3])
    assert not hasattr(result, "unset")


def test_attributes_that_are_no_fields_come_along_as_they_are() -> None:
    extra = [1]
    result = replaced(WithMore(future(1)).remember("extra", extra))
    assert result.x == "1"
    assert vars(result)["extra"] is extra


def test_slots_of_a_base_come_along() -> None:
    value = OnSlots(future(1))
    value.z = 3  # type: ignore[attr-defined]
    assert (replaced(value).x, replaced(value).z) == ("1", 3)


def test_dataclasses_that_are_exceptions_are_copied_with_what_they_were_made_with() -> None:
    result = replaced(Complaint(future(1)))
    assert type(result) is Complaint
    assert (result.about, result.args) == ("1", ("1",))


def test_types_and_enums_are_no_containers() -> None:
    for value in (Plain, Pair, list[int], Colour.RED, Colour):
        assert find_futures([value]) is None
        assert replaced([value, future()])[0] is value


def test_containers_that_are_not_promised_are_left_alone() -> None:
    class Hiding:
        def __init__(self) -> None:
            self.x = future()

    for value in (deque([future()]), Hiding(), iter([future()]), {"a": future()}.values(), partial(print, future())):
        assert find_futures([value]) is None
        assert replaced(value) is value


def test_each_future_is_found_once() -> None:
    one, two = future(1), future(2)
    assert find_futures([one, [one, {two: one}], (two,), Plain(one)]) == {one: False, two: False}


def test_nothing_to_replace() -> None:
    for values in ([], [1, "a", None, b"", 2.5, True, 1j], [[1, (2, {3: {4}})], Plain([1])]):
        assert find_futures(values) is None


# Words around values


def test_quoted_futures_are_left_alone() -> None:
    one = future()
    inner = [one]
    assert find_futures([quote(one)]) == {}, "not None: the quotation marks have to go"
    assert replaced(quote(inner)) is inner
    assert replaced({"a": quote(one), "b": future(2)}) == {"a": one, "b": "2"}
    assert replaced([quote(quote(1))])[0].value == 1, "one pair of marks goes"


def test_unmapped_is_transparent_in_a_call() -> None:
    one = future(1)
    assert find_futures([unmapped([one])]) == {one: False}
    assert replaced([unmapped([one]), unmapped(5)]) == [["1"], 5]
    assert find_futures([unmapped(5)]) == {}


@pytest.mark.parametrize(
    "value",
    [
        allow_failure(future(1)),
        allow_failure([future(1)]),
        [allow_failure(future(1))],
        {"a": allow_failure({"b": (future(1),)})},
        Plain(allow_failure(future(1))),
        allow_failure(unmapped(future(1))),
        unmapped(allow_failure(future(1))),
        allow_failure(allow_failure(future(1))),
        allow_failure(future(1)["part"]),
    ],
)
def test_failures_are_allowed_inside_of_allow_failure(value: Any) -> None:
    found = find_futures([value])
    assert found is not None
    assert list(found.values()) == [True]


def test_allow_failure_reaches_no_further_than_its_value() -> None:
    one, two = future(1), future(2)
    assert find_futures([[allow_failure(one), two]]) == {one: True, two: False}
    assert replaced([allow_failure([one]), two]) == [["1!"], "2"]


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_a_container_that_stands_here_and_in_allow_failure_is_not_allowed_to_fail(wrapped_first: bool) -> None:
    one = future(1)
    shared = [one]
    values: list[Any] = [allow_failure(shared), shared] if wrapped_first else [shared, allow_failure(shared)]
    assert find_futures(values) == {one: False}
    assert replaced(values) == ([["1!"], ["1"]] if wrapped_first else [["1"], ["1!"]])


@pytest.mark.parametrize("wrapped_first", [True, False])
def test_a_future_that_is_allowed_to_fail_here_and_not_there_is_not(wrapped_first: bool) -> None:
    one = future(1)
    values = [allow_failure(one), one] if wrapped_first else [one, allow_failure(one)]
    assert find_futures(values) == {one: False}
    assert find_futures([values]) == {one: False}


def test_wrappers_show_what_they_hold() -> None:
    assert [repr(word([1])) for word in (unmapped, quote, allow_failure)] == [
        "unmapped([1])",
        "quote([1])",
        "allow_failure([1])",
    ]


# Parts of futures


def test_a_part_stands_for_itself_and_makes_the_whole_a_dependency() -> None:
    whole = future(1, {"a": [10, {"b": 20}]})
    part = whole["a"][1]["b"]
    assert find_futures([[part, whole["a"][0]]]) == {whole: False}
    assert replace([part, whole["a"][0]], lambda asked, allowed: asked._data) == [20, 10]
    assert repr(part) == "<TaskFuture source-1 completed>['a'][1]['b']"


def test_a_part_of_a_failure_is_the_failure() -> None:
    whole = future(1)
    whole._type = StateType.FAILED
    error = ValueError()
    assert replace([allow_failure(whole["a"])], lambda asked, allowed: error) == [error]


def test_a_missing_part_raises_what_the_whole_raises() -> None:
    with pytest.raises(KeyError, match="b"):
        replace([future(1, {"a": 1})["b"]], lambda asked, allowed: asked._data)


def test_placeholders_become_what_arrives_beside_them() -> None:
    packed = pickle.dumps([Placeholder(0), {"a": Placeholder(1, ("x", 0))}])
    values = ["zero", {"x": ["deep"]}]
    with arriving(lambda index: values[index]):
        assert pickle.loads(packed) == ["zero", {"a": "deep"}]


def test_places_of_parts_carry_their_keys() -> None:
    whole = future(1)
    result = replace([whole["x"][0]], lambda asked, allowed: Placeholder(3))
    assert (result[0].index, result[0].keys) == (3, ("x", 0))


@pytest.mark.parametrize("walked", [future(1), future(1)["a"]])
def test_futures_are_not_walked_over(walked: TaskFuture[Any] | FuturePart) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{walked!r} can't be walked over")):
        list(walked)


def test_futures_do_not_pickle() -> None:
    with pytest.raises(SerializationError, match="source-4"):
        pickle.dumps(future(4))


# Shapes that could be a trap


def test_what_does_not_change_is_not_copied() -> None:
    same = [1, {"a": (2, Plain([3]))}]
    for make in (in_a_list, in_a_dict, Plain, in_a_tuple):
        value = make(same)
        assert replaced(value) is value
    result = replaced({"a": same, "b": future(1), "c": allow_failure(same)})
    assert result["a"] is same
    assert result["c"] is same


def test_containers_may_contain_themselves() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    table: dict[str, Any] = {"ring": ring}
    table["table"] = table
    record = Plain(table)
    table["record"] = record
    assert find_futures([table]) is None
    assert replaced(table) is table
    ring.append(future(5))
    found = find_futures([table])
    assert found is not None
    assert [one._index for one in found] == [5]
    result = replaced(table)
    assert result["ring"] == [1, result["ring"], "5"]
    assert result["table"] is result
    assert result["record"].x is result
    result = replaced(record)
    assert result.x["record"] is result
    assert find_futures([result]) is None


def test_tuples_in_rings_are_copied_once() -> None:
    ring: list[Any] = [future(1)]
    knot = (ring, ring, frozenset([2, future(2)]))
    ring.append(knot)
    for start, result in ((ring, replaced(ring)), (knot, replaced(knot)[0])):
        assert result[0] == "1"
        again = result[1]
        assert type(again) is tuple
        assert again[0] is again[1] is result
        assert again[2] == {2, "2"}
        assert find_futures([start]), "the original is left alone"


def test_keys_in_rings_are_hashed_when_they_are_whole() -> None:
    table: dict[Any, Any] = {}
    table[Named(future(1), table)] = [table]
    table[frozenset([Named(future(2), table)])] = 2
    result = replaced(table)
    one, two = result
    assert (one.name, one.others) == ("1", result)
    assert [inner.name for inner in two] == ["2"]
    assert result[one] == [result]
    assert result[frozenset([Named("2", None)])] == 2


def test_what_stands_twice_stands_twice_afterwards() -> None:
    inner = [future(1)]
    result = replaced([inner, {"a": inner}, (inner,)])
    assert result[0] is result[1]["a"] is result[2][0]
    args, kwargs = replace_arguments((inner, 1), {"a": inner, "b": (2, inner)}, told)
    assert args[0] is kwargs["a"] is kwargs["b"][1]
    assert args[0] == ["1"]


@pytest.mark.parametrize("seed", range(100))
def test_any_shape_is_kept(seed: int) -> None:
    chance = random.Random(seed)
    # Lists and dicts can be filled later, also with tuples that hold them.
    open_ones: list[Any] = [chance.choice([list, dict])() for _ in range(chance.randint(1, 12))]
    every: list[Any] = [*open_ones, *[future(number) for number in range(chance.randint(0, 2))], 5]
    for _ in range(chance.randint(0, 8)):
        every.append(tuple(chance.choices(every, k=chance.randint(1, 3))))
    for one in open_ones:
        for number, part in enumerate(chance.choices(every, k=chance.randint(0, 3))):
            if isinstance(one, list):
                one.append(part)
            else:
                one[number] = part
    start = every[-1]
    assert_same_shape(start, replaced(start))


def assert_same_shape(before: Any, after: Any) -> None:
    """Assert that each container has one copy, or is left alone if nothing in it changes."""
    copies: dict[int, Any] = {}
    todo = [(before, after)]
    while todo:
        one, other = todo.pop()
        if isinstance(one, TaskFuture):
            assert other == told(one, allowed=False)
        elif not isinstance(one, (list, tuple, dict)):
            assert other == one
        elif id(one) in copies:
            assert copies[id(one)] is other
        else:
            copies[id(one)] = other
            assert type(other) is type(one)
            assert (other is one) == (find_futures([one]) is None)
            parts, others = (list(box.values()) if isinstance(box, dict) else list(box) for box in (one, other))
            todo.extend(zip(parts, others, strict=True))


def test_deep_nesting_is_walked_without_recursion() -> None:
    one = future(1)
    deep: Any = []
    deep_with_future: Any = one
    for level in range(50_000):
        deep = [deep] if level % 2 else {"a": deep}
        deep_with_future = (deep_with_future,) if level % 2 else [allow_failure(deep_with_future)]
    assert find_futures([deep]) is None
    assert replaced(deep) is deep
    assert find_futures([deep_with_future]) == {one: True}


def test_a_future_at_the_bottom_of_deep_nesting_is_replaced_without_recursion() -> None:
    deep: Any = future(1)
    for level in range(50_000):
        deep = [deep] if level % 3 else {"a": allow_failure(deep)}
        deep = (deep,) if level % 2 else deep
    result = replaced(deep)
    while not isinstance(result, str):
        (result,) = result.values() if isinstance(result, dict) else result
    assert result == "1!"


def test_containers_met_many_times_are_searched_and_replaced_once() -> None:
    shared: Any = [future(1)]
    for _ in range(60):  # 2 ** 60 ways lead to the future
        shared = [shared, shared]
    found = find_futures([shared])
    assert found is not None
    assert len(found) == 1
    asked: list[int] = []
    replace(shared, lambda one, allowed: asked.append(one._index))
    assert asked == [1]


def test_wide_containers() -> None:
    futures = [future(number) for number in range(10_000)]
    found = find_futures([futures])
    assert found is not None
    assert len(found) == 10_000
    assert replaced(futures) == [str(number) for number in range(10_000)]


# Arguments as a whole


def test_arguments_are_replaced_by_place_and_name() -> None:
    args, kwargs = replace_arguments((future(1), 2, [future(3)]), {"a": future(4), "b": 5}, told)
    assert (args, kwargs) == (("1", 2, ["3"]), {"a": "4", "b": 5})


def test_one_resolver_is_asked_for_each_place() -> None:
    asked: list[int] = []
    one = future(1)
    replace_arguments((one, one), {"a": [one]}, lambda found, allowed: asked.append(found._index))
    assert asked == [1, 1, 1]


def test_what_a_resolver_returns_is_not_searched_again() -> None:
    other = future(2)
    assert replace([future(1)], lambda asked, allowed: [other]) == [[other]]


def test_errors_of_a_resolver_come_through() -> None:
    def refuse(asked: TaskFuture[Any], allowed: bool) -> Any:
        raise LookupError(asked.name)

    with pytest.raises(LookupError, match="source-1"):
        replace({"a": [future(1)]}, refuse)


class Uncopied(list[Any]):
    def __copy__(self) -> Uncopied:
        raise LookupError("one of a kind")


class Copied(list[Any]):
    def __copy__(self) -> Copied:
        return self


@dataclass
class Demanding:
    x: Any

    def __new__(cls, x: Any) -> Demanding:
        return super().__new__(cls)


class Picky(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, str):
            raise ValueError("no texts")
        super().__setitem__(key, value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            Uncopied([future(1)]),
            r"in a \S+\.Uncopied: LookupError: one of a kind\. Give the call the futures in a list",
        ),
        (Copied([future(1)]), r"in a \S+\.Copied: TypeError: its copy is itself"),
        (Demanding(future(1)), r"in a \S+\.Demanding: TypeError: .*__new__"),
        (Picky(a=future(1)), r"in a \S+\.Picky: ValueError: no texts"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_container_that_cannot_be_copied_is_named(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        replaced([value])
    assert find_futures([value]), "the original is left alone"


@pytest.mark.parametrize(("value", "name"), [({future(1)}, "set"), ({future(1): 2}, "dict")])
def test_a_container_that_cannot_hold_a_result_is_named(value: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"in a {name}: TypeError: unhashable type: 'list'"):
        replace(value, lambda asked, allowed: [])


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False)
leaves = plain | st.builds(future, st.integers(0, 9))
keys = st.text(max_size=3) | st.integers()


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.builds(Pair, inner, inner)
        | st.builds(Plain, inner, inner)
        | st.builds(FrozenSlotted, inner)
        | inner.map(allow_failure)
    )


values = st.recursive(leaves, containers, max_leaves=25)


def by_recursion(value: Any, allowed: bool = False) -> Any:
    """Do what ``replace`` does, simply."""
    match value:
        case TaskFuture():
            return told(value, allowed)
        case allow_failure():
            return by_recursion(value.value, allowed=True)
        case Pair():
            return Pair(*(by_recursion(part, allowed) for part in value))
        case list() | tuple():
            return type(value)(by_recursion(part, allowed) for part in value)
        case dict():
            return {key: by_recursion(part, allowed) for key, part in value.items()}
        case Plain():
            return Plain(by_recursion(value.x, allowed), by_recursion(value.y, allowed))
        case FrozenSlotted():
            return FrozenSlotted(by_recursion(value.x, allowed))
    return value


@given(values)
def test_any_value_is_replaced_as_by_plain_recursion(value: Any) -> None:
    before = repr(value)
    result = replaced(value)
    assert result == by_recursion(value)
    assert find_futures([result]) is None
    assert repr(value) == before


@given(values)
def test_what_is_found_is_what_is_asked_for(value: Any) -> None:
    asked: dict[TaskFuture[Any], bool] = {}

    def ask(one: TaskFuture[Any], allowed: bool) -> None:
        asked[one] = asked.get(one, True) and allowed

    replace(value, ask)
    assert (find_futures([value]) or {}) == asked


# What calls wait for, beside their arguments


@dataclass
class Labelled:
    label: str
    made: Any


def test_futures_to_wait_for_are_found_in_containers() -> None:
    one, two = future(1), future(2)
    for given_, found in [
        (one, [one]),
        ([one, two], [one, two]),
        (FutureList([one, two]), [one, two]),
        ([one, [(two,), None]], [one, two]),
        ({"first": one, "others": {"second": two}}, [one, two]),
        ({one: "first", two: "second"}, [one, two]),
        (frozenset({one}), [one]),
        (one["part"], [one]),
        (Labelled("first", one), [one]),
        ([], []),
        ([None], []),
    ]:
        assert set(awaited_futures(given_, "task")) == set(found), given_


def test_what_is_waited_for_may_be_allowed_to_fail() -> None:
    one, two = future(1), future(2)
    assert awaited_futures([one, allow_failure([two])], "task") == {one: False, two: True}


def test_a_circle_of_containers_ends_the_search_for_futures_to_wait_for() -> None:
    one = future(1)
    circle: list[Any] = [one]
    circle.append(circle)
    assert awaited_futures(circle, "task") == {one: False}


@pytest.mark.parametrize(
    ("stranger", "shown"),
    [
        (3, "int"),
        ("add-0", "str"),
        (source, "turnout._task.Task"),
        ((one for one in [future()]), "generator"),
        (quote([future()]), "turnout._arguments.quote"),
        (Labelled("first", None), f"{__name__}.Labelled"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_waiting_for_what_is_no_future_is_refused(stranger: Any, shown: str) -> None:
    for given_ in (stranger, [future(), stranger], {"key": [stranger]}):
        with pytest.raises(TypeError, match=rf"wait_for of 'load' holds a value of type {re.escape(shown)}, which is"):
            awaited_futures(given_, "load")
