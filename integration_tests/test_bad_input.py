"""docs/bad-input.md tells the truth: each line of its tables gives what it says, on every runner that it is about."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from integration_tests.test_docs import TOP, assert_prints, blocks_of, run

PAGE: Final = TOP / "docs" / "bad-input.md"

IN_PROCESS: Final = ("sequential", "thread")
THREADS: Final = ("thread", "executor:concurrent.futures:ThreadPoolExecutor,max_workers=2")
ELSEWHERE: Final = ("process", "executor:concurrent.futures:ProcessPoolExecutor")
CLUSTERS: Final = tuple(
    pytest.param(word, marks=pytest.mark.cluster) for word in ("dask?n_workers=2", "ray?num_cpus=2")
)

# Tells what comes of each expression; without a runner, outside of a flow.
_SCRIPT: Final = """
import json, logging, sys
import bad
from turnout import TaskFuture

logging.disable()


def outcome(expression):
    try:
        value = eval(expression, vars(bad))
        value = value.result(timeout=30) if isinstance(value, TaskFuture) else value
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return repr(value)


def tell(expressions):
    outcomes.extend(map(outcome, expressions))


outcomes = []
with open("asked.json") as file:
    word, expressions = json.load(file)
if word:
    # Some calls fail at which nobody looks.
    bad.flow(tell, task_runner=word)(expressions, return_state=True)
else:
    tell(expressions)
print(json.dumps(outcomes))
"""


class Row(NamedTuple):
    """A line of a table."""

    what: str
    expression: str
    gives: tuple[str, ...]


def rows_of(heading: str) -> list[Row]:
    """Return the lines of the table below a heading."""
    (part,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    cells = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return [Row(what, expression[1:-1], tuple(one[1:-1] for one in gives)) for what, expression, *gives in cells[1:]]


def check(rows: list[Row], word: str | None, folder: Path, column: int = 0) -> None:
    """Compare what a table says with what comes of its expressions on a runner."""
    (block,) = (block for block in blocks_of(PAGE) if block.name == "bad.py")
    (folder / "bad.py").write_text(block.text)
    (folder / "told.py").write_text(_SCRIPT)
    (folder / "asked.json").write_text(json.dumps([word, [row.expression for row in rows]]))
    ended = run([sys.executable, "told.py"], folder)
    assert ended.status == 0, ended.err
    outcomes = json.loads(ended.out)
    assert len(outcomes) == len(rows)
    for row, outcome in zip(rows, outcomes, strict=True):
        assert_prints(row.gives[column], outcome)


@pytest.mark.parametrize("word", [*IN_PROCESS, *ELSEWHERE, *CLUSTERS])
def test_what_goes_wrong_everywhere(word: str, tmp_path: Path) -> None:
    check(rows_of("On every runner"), word, tmp_path)


@pytest.mark.parametrize("word", [*ELSEWHERE, *CLUSTERS])
def test_what_cannot_travel(word: str, tmp_path: Path) -> None:
    check(rows_of("What can't travel"), word, tmp_path)


@pytest.mark.parametrize("word", IN_PROCESS)
def test_what_need_not_travel(word: str, tmp_path: Path) -> None:
    check(rows_of("What can't travel"), word, tmp_path, column=1)


@pytest.mark.parametrize("word", THREADS)
def test_what_would_wait_for_ever(word: str, tmp_path: Path) -> None:
    check(rows_of("Waiting for each other"), word, tmp_path)


def test_what_runners_refuse(tmp_path: Path) -> None:
    check(rows_of("Runners"), None, tmp_path)


def test_every_table_is_tested() -> None:
    tables = re.findall(r"^## ([^\n]*)\n(?:(?!^## ).)*?^\| what \|", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert tables == ["On every runner", "What can't travel", "Waiting for each other", "Runners"]
    assert all(len(rows_of(heading)) >= 2 for heading in tables)
