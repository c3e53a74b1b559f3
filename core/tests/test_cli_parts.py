"""The parts of the command line that need no flow: parameters, log lines, tracebacks, output."""

from __future__ import annotations

import datetime as dt
import enum
import logging
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import pytest

from turnout import flow
from turnout.cli import _failure, _logging, _output, _parameters
from turnout.cli._conversion import convert
from turnout.cli._problem import UsageProblem, one_line

if TYPE_CHECKING:
    from fractions import Fraction


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


@pytest.mark.parametrize(
    ("text", "wanted", "expected"),
    [
        ("3", str, "3"),
        ("null", str, "null"),
        ('"x"', str, '"x"'),
        ("3", int, 3),
        ("-3", int, -3),
        ("1_000", int, 1000),
        ("3", float, 3.0),
        ("1e-3", float, 0.001),
        ("True", bool, True),
        ("yes", bool, True),
        ("0", bool, False),
        ("off", bool, False),
        ("a/b", Path, Path("a/b")),
        ("2026-02-28", dt.date, dt.date(2026, 2, 28)),
        ("2026-02-28T12:00", dt.datetime, dt.datetime(2026, 2, 28, 12)),  # noqa: DTZ001
        ("RED", Colour, Colour.RED),
        ("red", Colour, Colour.RED),
        ("2", Colour, Colour.BLUE),
        ("fast", Literal["fast", 2], "fast"),
        ("2", Literal["fast", 2], 2),
        ("none", None, None),
        ("3", Optional[int], 3),  # noqa: UP045 - users still write it
        ("null", Optional[int], None),  # noqa: UP045
        ("None", int | None, None),
        ("3", int | str, 3),
        ("3", str | int, 3),
        ("x", str | int, "x"),
        ("3", str | None, "3"),
        ("[1]", list[int] | None, [1]),
        ("3", Annotated[int, "how many"], 3),
        ("[1, 2]", list[int], [1, 2]),
        ("[1, 2]", list, [1, 2]),
        ("[1, 2]", Sequence[float], [1.0, 2.0]),
        ("[1, 2]", tuple[int, ...], (1, 2)),
        ('[1, "x"]', tuple[int, str], (1, "x")),
        ("[1, 1]", set[int], {1}),
        ('["a", "b"]', list[Path], [Path("a"), Path("b")]),
        ('[["a"], []]', list[list[Path]], [[Path("a")], []]),
        ("[null, 1]", list[int | None], [None, 1]),
        ('["red"]', list[Colour], [Colour.RED]),
        ('{"a": 1}', dict[str, float], {"a": 1.0}),
        ('{"1": [2]}', Mapping[int, tuple[int, ...]], {1: (2,)}),
        ('{"a": 1}', dict, {"a": 1}),
        ("[1]", Any, [1]),
        ("3", Any, 3),
        ("true", Any, True),
        ("word", Any, "word"),
        ("[1", Any, "[1"),
        ("", Any, ""),
        ('{"a": 1}', Decimal, {"a": 1}),
        ("word", "Unresolvable", "word"),
    ],
)
def test_text_becomes_what_the_annotation_asks_for(text: str, wanted: Any, expected: object) -> None:
    found = convert(text, wanted)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x", int),
        ("3.5", int),
        ("", int),
        ("x", float),
        ("maybe", bool),
        ("tomorrow", dt.date),
        ("green", Colour),
        ("slow", Literal["fast"]),
        ("x", None),
        ("x", int | None),
        ("x", int | float),
        ("a,b", list[str]),
        ("3", list[int]),
        ("{}", list[int]),
        ("[]", dict[str, int]),
        ('["x"]', list[int]),
        ("[true]", list[int]),
        ("[1]", list[str]),
        ("[null]", list[str]),
        ("[1, 2]", tuple[int, str, str]),
        ('{"a": "x"}', dict[str, int]),
    ],
)
def test_text_that_does_not_fit_is_refused(text: str, wanted: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is for the caller to write
        convert(text, wanted)


def survey(paths: list[Path], limit: int | None = None, *, title: str = "all") -> None:
    """Look at some files."""


def hinted(share: Fraction, count: int = 1) -> None:
    """Take a type that is imported for type checkers only."""


def positional(first: int = 1, second: int = 2, /, **others: float) -> tuple[object, ...]:
    return first, second, others


def nothing() -> None:
    pass


class Network:
    @flow
    @classmethod
    def reach(cls, stops: int) -> None:
        """Take the class, which nobody has to type."""


def bound(function: Any, *typed: str) -> dict[str, Any]:
    return _parameters.bind(flow(function, name="survey"), typed).arguments


def test_parameters_are_bound_by_annotation_and_defaults_filled_in() -> None:
    assert bound(survey, 'paths=["a"]', "title=12") == {"paths": [Path("a")], "limit": None, "title": "12"}
    assert bound(survey, "paths=[]", "limit=3")["limit"] == 3


def test_an_equals_sign_may_be_part_of_the_value() -> None:
    assert bound(survey, "paths=[]", "title=a=b")["title"] == "a=b"
    assert bound(survey, "paths=[]", "title=")["title"] == ""


def test_an_annotation_that_is_not_there_leaves_the_others_alone() -> None:
    assert bound(hinted, "share=1/2", "count=3") == {"share": "1/2", "count": 3}


def test_positional_only_and_further_keywords() -> None:
    arguments = _parameters.bind(flow(positional), ["second=5", "weight=3"])
    assert positional(*arguments.args, **arguments.kwargs) == (1, 5, {"weight": 3.0})


def test_a_flow_of_a_class_needs_no_class() -> None:
    assert _parameters.bind(Network.reach, ["stops=3"]).arguments == {"stops": 3}


@pytest.mark.parametrize(
    ("function", "typed", "message"),
    [
        (
            survey,
            [],
            "It takes paths: list[pathlib.Path], limit: int | None = None, *, title: str = 'all'",
        ),
        (
            survey,
            [],
            "flow 'survey': give it -p paths=.... It takes",
        ),
        (survey, ["path=[]"], "flow 'survey': no parameter 'path' (did you mean 'paths'?). It takes paths: "),
        (survey, ["zzz=1"], "flow 'survey': no parameter 'zzz'. It takes paths: "),
        (survey, ["paths=[]", "paths=[]"], "flow 'survey': parameter 'paths' is given twice. It takes"),
        (survey, ["paths"], "flow 'survey': -p takes name=value, not 'paths'. It takes"),
        (survey, ["=3"], "flow 'survey': -p takes name=value, not '=3'. It takes"),
        (survey, ["limit=many"], "parameter 'limit' is to be int | None, which 'many' is not. It takes"),
        (survey, ["paths=a"], "parameter 'paths' is to be list[pathlib.Path], which 'a' is not. It takes"),
        (nothing, ["x=1"], "flow 'survey': no parameter 'x'. It takes no parameters"),
        (positional, ["weight=heavy"], "parameter 'weight' is to be float, which 'heavy' is not"),
    ],
)
def test_a_bad_parameter_is_one_line_that_names_those_there_are(function: Any, typed: list[str], message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        bound(function, *typed)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def record(message: str, **attributes: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "levelno": 20, "levelname": "INFO", "created": 1.25, "msecs": 250.0})
    vars(made).update(attributes)
    return made


@pytest.mark.parametrize(
    ("attributes", "message", "expected"),
    [
        ({}, "all aboard", "all aboard"),
        ({"task_run_name": "x-0", "flow_run_name": "f"}, "hello", "Task run 'x-0' - hello"),
        ({"task_run_name": None, "flow_run_name": "f"}, "hello", "Flow run 'f' - hello"),
        ({"task_run_name": "x-0"}, "Task run 'x-0' - Finished in state Completed()", ""),
        ({"flow_run_name": "f"}, "Flow run 'f' - Finished in state Completed()", ""),
    ],
)
def test_a_log_line_says_who_speaks_once(attributes: dict[str, object], message: str, expected: str) -> None:
    line = _logging._RunFormatter().format(record(message, **attributes))
    time, level, text = line.split(" | ")
    assert time.endswith(".250")
    assert len(time) == len("12:30:01.250")
    assert (level, text) == ("INFO", expected or message)


def test_a_traceback_shows_no_frame_of_ours() -> None:
    with pytest.raises(UsageProblem) as caught:
        bound(survey)
    text = _failure.text_of(caught.value)
    assert "test_cli_parts.py" in text
    assert "_parameters.py" not in text


def test_causes_contexts_and_members_are_shown_without_our_frames() -> None:
    def failing() -> None:
        try:
            bound(survey)
        except UsageProblem as problem:
            raise ExceptionGroup("two", [problem, ValueError("other")]) from problem

    with pytest.raises(ExceptionGroup) as caught:
        failing()
    text = _failure.text_of(caught.value)
    assert text.count("flow 'survey': give it") == 2
    assert "ValueError: other" in text
    assert "in failing" in text
    assert "_parameters.py" not in text


def test_an_error_that_is_all_ours_shows_no_empty_traceback() -> None:
    with pytest.raises(UsageProblem) as caught:
        bound(survey)
    assert caught.tb.tb_next is not None
    error = caught.value.with_traceback(caught.tb.tb_next.tb_next)
    assert _failure.text_of(error).startswith("turnout.cli._problem.UsageProblem: flow 'survey'")


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, None, True, "x"]}, {"a": [1, None, True, "x"]}),
        ({1, 2}, "{1, 2}"),
        (float("inf"), "inf"),
        ([float("nan")], "[nan]"),
        (Path("a"), repr(Path("a"))),
        (Unspeakable(), "<Unspeakable, whose repr raised RuntimeError>"),
    ],
)
def test_a_result_that_json_can_not_hold_is_its_repr(value: object, expected: object) -> None:
    assert _output.as_json(value) == expected


def test_a_result_that_holds_itself_is_its_repr() -> None:
    value: list[object] = []
    value.append(value)
    assert _output.as_json(value) == "[[...]]"


@pytest.mark.parametrize(
    ("value", "expected"), [(None, ""), ("two\nlines", "two\nlines\n"), ([1, "x"], "[1, 'x']\n"), (0, "0\n")]
)
def test_a_value_is_printed_as_text_or_repr(value: object, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    _output.print_value(value)
    assert capsys.readouterr().out == expected


def test_a_value_is_laid_out_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    _output.print_value(["x" * 50, "y" * 50])
    assert len(capsys.readouterr().out.splitlines()) > 1


def test_a_table_is_not_folded_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _output.print_table(("word", "what"), [("x", "long " * 60), ("[bold]y", "z")])
    head, rule, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["word", "what"]
    assert set(rule.strip()) <= {"─", " "}
    assert first.split() == ["x", *["long"] * 60]
    assert second.split() == ["[bold]y", "z"]


def test_one_line() -> None:
    assert one_line(" a\n\n  b c\n") == "a b c"
