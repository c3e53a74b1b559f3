"""README and docs tell the truth: every script and command in them runs, and prints what stands below it.

How pages are written, so that this can be tested:

- A ``python`` block is a whole script. It prints what the ``text`` block right behind it says, or nothing.
- One that begins with ``# name.py`` is there as a file for all other blocks of its page.
- A ``console`` block holds commands behind ``$``, each followed by what it prints.
- A ``sh`` block holds commands that are not run here, such as an installation; a ``toml`` block is a file; a block of
  no language is a drawing.
- ``...`` stands for anything, and line breaks don't count. The lines in which runs tell their end are left out below
  scripts that don't show any.
"""

from __future__ import annotations

import doctest
import inspect
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import turnout
import turnout.errors
from turnout.cli._commands import commands
from turnout.registry import resolve
from turnout.runner import Capabilities
from turnout.testing import ChaosTaskRunner, RunnerConformance
from turnout_runners.executor import ExecutorTaskRunner
from turnout_runners.process import ProcessPoolTaskRunner
from turnout_runners.thread import ThreadPoolTaskRunner

TOP: Final = Path(__file__).resolve().parents[1]
PAGES: Final = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
RUNNERS: Final = ("sequential", "thread", "process", "executor", "executor:concurrent.futures:ProcessPoolExecutor")
CLUSTERS: Final = ("dask?n_workers=2", "ray?num_cpus=2")
CLUSTER_PAGES: Final = ("dask.md", "ray.md", "moving-to-a-cluster.md")
COLUMNS: Final = (*RUNNERS, "dask", "tcp://127.0.0.1:8786", "ray")
LANGUAGES: Final = {"python", "text", "console", "sh", "toml", ""}
TIME_LIMIT: Final = 50.0

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME: Final = re.compile(r"# ([\w.]+\.py)\n")
_TOLD: Final = re.compile(r"^(?:Task|Flow) run '.*' - .*\n", re.MULTILINE)
_TRACEBACK: Final = "Traceback (most recent call last):"


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    output: str
    """What a script prints, as the page says; empty if it prints nothing."""

    @property
    def name(self) -> str | None:
        """The file name that a script gives itself."""
        match = _NAME.match(self.text)
        return match.group(1) if match else None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


class Ended(NamedTuple):
    """What became of a process."""

    status: int
    out: str
    err: str


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, with the output of each script taken from the block behind it."""
    text = page.read_text()
    found = list(_FENCE.finditer(text))
    blocks = []
    for match, after in zip(found, [*found[1:], None], strict=False):
        shows = after is not None and after[1] == "text" and not text[match.end() : after.start()].strip()
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(page, line, match[1], match[2], after[2] if shows and after else ""))
    return blocks


BLOCKS: Final = [block for page in PAGES for block in blocks_of(page)]


def blocks_in(kind: str) -> list[Any]:
    """Return the blocks of a kind as parameters of a test; some pages start clusters."""
    return [
        pytest.param(block, marks=pytest.mark.cluster if block.page.name in CLUSTER_PAGES else ())
        for block in written(kind)
    ]


def written(kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == kind]


def run(command: Sequence[str], folder: Path, *, merged: bool = False, **variables: str) -> Ended:
    """Run a command as a user does, in a folder, with everything that it starts in a session of its own."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment() | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=TIME_LIMIT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Ended(process.returncode, out, err or "")


def environment() -> dict[str, str]:
    """Return a user's environment: the commands of this interpreter's environment, and nothing about tests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TURNOUT_"))}
    scripts = str(Path(sys.executable).parent)
    return clean | {"PATH": os.pathsep.join([scripts, clean.get("PATH", os.defpath)]), "NO_COLOR": "1"}


def prepare(folder: Path, page: Path) -> Path:
    """Put the files that a page names into a folder, and the examples beside them."""
    for block in blocks_of(page):
        if block.name:
            (folder / block.name).write_text(block.text)
    (folder / "examples").symlink_to(TOP / "examples")
    return folder


def assert_prints(expected: str, got: str) -> None:
    """Compare as doctest does: ``...`` stands for anything, and spaces and line breaks are all the same."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    checker = doctest.OutputChecker()
    if not checker.check_output(expected, got, flags):
        pytest.fail(f"The page says:\n{expected}\nIt prints:\n{got}", pytrace=False)


# Scripts and commands


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []


def test_every_output_stands_right_behind_its_script() -> None:
    scripts = [block for block in BLOCKS if block.language == "python" and block.output]
    assert len(scripts) == len(written("text"))


def test_no_page_names_two_files_alike() -> None:
    names = [(block.page, block.name) for block in written("python") if block.name]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("block", blocks_in("python"), ids=str)
def test_script(block: Block, tmp_path: Path) -> None:
    folder = prepare(tmp_path, block.page)
    name = block.name or "script.py"
    (folder / name).write_text(block.text)
    ended = run([sys.executable, name], folder)
    told = ended.err if _TOLD.search(block.output) else _TOLD.sub("", ended.err)
    assert_prints(block.output, ended.out + told)
    # A script that ends by an exception prints a traceback; one that prints a traceback may go on.
    assert ended.status == 0 or (ended.status == 1 and _TRACEBACK in block.output)


@pytest.mark.parametrize("block", blocks_in("console"), ids=str)
def test_console(block: Block, tmp_path: Path) -> None:
    folder = prepare(tmp_path, block.page)
    for command, expected in commands_of(block):
        ended = run(["bash", "-c", command], folder, merged=True, PYTHONUNBUFFERED="1")
        assert_prints(expected, ended.out)


def commands_of(block: Block) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console, each with what it prints."""
    before, *parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not before, f"{block} begins with a command behind a $"
    for part in parts:
        match = re.match(r"(?:.*\\\n)*.*\n", part)
        assert match, f"{block} has an empty command"
        yield match.group(), part[match.end() :]


@pytest.mark.parametrize("runner", [*RUNNERS, *(pytest.param(word, marks=pytest.mark.cluster) for word in CLUSTERS)])
def test_the_script_of_the_readme_prints_the_same_on_every_runner(runner: str, tmp_path: Path) -> None:
    (block,) = (block for block in blocks_of(TOP / "README.md") if block.name == "pi.py")
    prepare(tmp_path, block.page)
    ended = run([sys.executable, "pi.py"], tmp_path, TURNOUT_TASK_RUNNER=runner)
    assert (ended.status, ended.out) == (0, block.output), ended.err


# What is written between the blocks


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as they are made for GitHub."""
    prose = _FENCE.sub("", page.read_text())
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = _FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if "://" in target:
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    """Inline code that looks like a path of this repository, such as `ci/test` or `_engine.py`, is one."""
    roots = [TOP, TOP / "core" / "turnout", TOP / "runners" / "turnout_runners", TOP / "integration_tests"]
    prose = _FENCE.sub("", page.read_text())
    named = {block.name for block in blocks_of(page)}
    paths = set(re.findall(r"`(ci/[\w-]+|_\w+\.py|(?:\w+/)+[\w.-]*)`", prose))
    commands_ = {
        path for block in blocks_of(page) if block.language == "sh" for path in re.findall(r"\bci/\w+", block.text)
    }
    for path in sorted(paths | commands_):
        assert path in named or any((root / path).exists() for root in roots), path


def test_extras_that_are_named_are_there() -> None:
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for page in PAGES for extra in re.findall(r"turnout\[(\w+)\]", page.read_text())}
    assert named
    assert named <= set(extras)


def table(page: str, head: str) -> set[str]:
    """Return the names in the first column of the table whose head begins so."""
    text = (TOP / "docs" / page).read_text()
    match = re.search(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)*)", text, re.MULTILINE)
    assert match, f"{page} has no table of {head!r}"
    cells = [row.split(" | ")[0] for row in match.group(1).splitlines()]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "fn"}


TABLES: Final[Mapping[tuple[str, str], Callable[..., Any]]] = {
    ("flows.md", "option of `@flow`"): turnout.Flow.__init__,
    ("tasks.md", "option of `@task`"): turnout.Task.__init__,
    ("runners.md", "option of `ThreadPoolTaskRunner`"): ThreadPoolTaskRunner.__init__,
    ("runners.md", "option of `ProcessPoolTaskRunner`"): ProcessPoolTaskRunner.__init__,
    ("runners.md", "option of `ExecutorTaskRunner`"): ExecutorTaskRunner.__init__,
    ("testing.md", "setting of `ChaosTaskRunner`"): ChaosTaskRunner.__init__,
}


@pytest.mark.parametrize(("page", "head"), TABLES)
def test_tables_hold_all_options(page: str, head: str) -> None:
    assert table(page, head) - {head.split("`")[1]} == parameters(TABLES[page, head])


@pytest.mark.parametrize("command", ["run", "graph", "runners", "doctor", "conform"])
def test_tables_hold_all_options_of_a_command(command: str) -> None:
    options = {
        name
        for one in commands.commands[command].params
        for name in (*one.opts, *one.secondary_opts)
        if name.startswith("-")
    }
    assert {name.split()[0] for name in table("command-line.md", f"option of `turnout {command}`")} == options


def test_every_public_name_is_told() -> None:
    prose = "".join(page.read_text() for page in PAGES)
    assert [name for name in turnout.__all__ if not re.search(rf"\b{name}\b", prose)] == []


def test_the_tree_of_errors_is_whole() -> None:
    text = (TOP / "docs" / "errors.md").read_text()
    assert [name for name in turnout.errors.__all__ if not re.search(rf"^[│├└─ ]*{name}\b", text, re.MULTILINE)] == []


def test_every_guarantee_of_the_kit_is_told() -> None:
    kit = {name.split("_")[1] for name in dir(RunnerConformance) if name.startswith("test_")}
    told = set(re.findall(r"^\| ([A-Z]\d+) \|", (TOP / "docs" / "guarantees.md").read_text(), re.MULTILINE))
    assert kit
    assert kit <= told


def test_the_table_of_capabilities_is_true() -> None:
    text = (TOP / "docs" / "guarantees.md").read_text()
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("| `")]
    shown = {name: tuple(cells) for name, *cells in rows if len(cells) == len(COLUMNS)}
    runners = [resolve(word).capabilities for word in COLUMNS]
    real = {field: tuple(told(getattr(one, field)) for one in runners) for field in Capabilities.__dataclass_fields__}
    assert shown == real


def told(value: bool | float | str) -> str:
    if isinstance(value, float):
        return f"{1000 * value:g} ms" if value else "no"
    return value.replace("_", " ") if isinstance(value, str) else ("yes" if value else "no")


def test_the_shown_runner_is_the_one_that_is_tested() -> None:
    package = TOP / "integration_tests" / "third_party"
    page = blocks_of(TOP / "docs" / "writing-a-runner.md")
    (shown,) = (block.text for block in page if block.name == "turnout_crew.py")
    assert shown.removeprefix("# turnout_crew.py\n") == (package / "src" / "turnout_crew" / "__init__.py").read_text()
    (project,) = (tomllib.loads(block.text) for block in page if block.language == "toml")
    real = tomllib.loads((package / "pyproject.toml").read_text())
    assert project["project"]["entry-points"] == real["project"]["entry-points"]
