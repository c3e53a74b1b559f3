"""How far a flow is, as its user sees it: in a terminal, in a notebook, and where there is neither."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import pytest

from integration_tests.commands import turnout_command
from integration_tests.terminals import Terminal, terminal

WORDS: Final = [
    "sequential",
    "thread:2",
    "process:2",
    *(pytest.param(word, marks=pytest.mark.cluster) for word in ("dask?n_workers=2", "ray?num_cpus=2")),
]

# Calls go on when the test makes a file.
HARBOUR: Final = """
import logging
import os
import sys
import time
from pathlib import Path

from turnout import flow, get_run_context, task

here = Path(__file__).parent


def wait_for(name):
    deadline = time.monotonic() + 60
    while not (here / name).exists() and time.monotonic() < deadline:
        time.sleep(0.005)


@task
def load(number):
    if number == 3:
        wait_for("go on")
    print(f"loaded {number}\\n", end="")
    return number


@task
def fail():
    raise ValueError("rough sea")


@task
def weigh(numbers):
    wait_for("weigh")
    return sum(numbers)


@flow
def harbour():
    logging.getLogger("harbour").warning("a storm")
    fail.submit().exception()
    return weigh.submit(load.map(range(10))).result()


@task
def wait_here(number):
    wait_for("never")


@flow
def stuck():
    wait_here.map(range(4))


@flow
def widely():
    for number in range(40):
        load.with_options(name=f"load-{number}").submit(number)
    wait_for("go on")


@flow
def asks():
    sys.stderr.write("your name? ")
    sys.stderr.flush()
    name = sys.stdin.readline().strip()
    load.submit(1)
    return f"hello {name}"


@flow
def dies():
    load.submit(1).wait()
    wait_for("go on")
    print("said last")
    os._exit(3)


@task(retries=1)
def unload(number):
    if number == 0 and get_run_context().attempt == 1:
        raise OSError("too heavy")
    return sum(load.map([11, 12]).result())


@task
def sort_out(number):
    return inner(number)


@flow
def inner(number):
    return unload.submit(number).result()


@flow
def deep():
    futures = sort_out.map(range(3))
    return inner(5), [future.result() for future in futures]


def talk():
    harbour()
    print("in between")
    harbour()


if __name__ == "__main__":
    from turnout import progress

    with progress.show():
        talk()
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "harbour.py").write_text(HARBOUR)
    return tmp_path


def turnout_run(
    here: Path,
    flow: str,
    *options: str,
    columns: int = 80,
    lines: int = 24,
    environment: Mapping[str, str] | None = None,
) -> AbstractContextManager[Terminal]:
    target = f"{here / 'harbour.py'}:{flow}"
    command = (sys.executable, "-m", "turnout", "run", target, "--log-level", "warning", *options)
    return terminal(*command, columns=columns, lines=lines, environment=environment)


def go_on(here: Path, *names: str) -> None:
    for name in names or ("go on", "weigh"):
        (here / name).touch()


def picture(text: str, flow: str = "harbour") -> list[str]:
    """Return the lines of the picture."""
    return text[text.rindex(f"{flow}  ") :].splitlines() if f"{flow}  " in text else []


@pytest.mark.parametrize("word", WORDS)
def test_what_is_printed_and_logged_stands_above_the_picture(here: Path, word: str) -> None:
    with turnout_run(here, "harbour", "--runner", word) as seen:
        seen.wait_for(
            lambda text: "running" in text and re.search(r"  load .* [3-9]/\d+ ", text) and "loaded 2" in text
        )
        above, _, below = seen.text.partition("harbour  ")
        assert above.count("loaded") >= 3
        assert "WARNING | a storm" in above
        assert "loaded" not in below
        go_on(here, "go on")
        seen.wait_for(lambda text: re.search(r"  load  .* 10/10", text) and "loaded 9" in text)
        assert re.search(r"weigh .* 0/1", seen.text)
        go_on(here)
        assert seen.ended() == 0
    rows = seen.rows
    end = next(index for index, row in enumerate(rows) if row.startswith("✓ harbour Completed in "))
    assert re.fullmatch(r"✓ harbour Completed in [\d.]+ s · 12 calls · [\d.,]+/(s|min)", rows[end])
    assert [row.split() for row in rows[end + 1 :]] == [
        ["failed"], ["fail", "1/1", "1"], ["load", "10/10"], ["weigh", "1/1"], ["45"],
    ]  # fmt: skip
    assert sorted(row for row in rows[:end] if row.startswith("loaded")) == [f"loaded {number}" for number in range(10)]
    assert "\n".join(rows).count("harbour ") == 1  # its last picture, and nothing of those before


def test_colours_are_as_the_user_wants_them(here: Path) -> None:
    go_on(here)
    cases: tuple[tuple[dict[str, str], bool], ...] = (({}, True), ({"NO_COLOR": "1"}, False))
    for environment, coloured in cases:
        with turnout_run(here, "harbour", environment=environment) as seen:
            assert seen.ended() == 0
        assert bool(re.search(rb"\x1b\[[\d;]*3\dm", seen.bytes)) is coloured


@pytest.mark.parametrize("word", ["thread:2", "process:2"])
def test_ctrl_c_leaves_a_clean_terminal(here: Path, word: str) -> None:
    with turnout_run(here, "stuck", "--runner", word) as seen:
        seen.wait_for(lambda text: re.search("wait_here .* 0/4 +2", text))
        seen.type(b"\x03")
        assert seen.ended() == 130
    (head,) = (row for row in seen.rows if "stuck" in row and "Flow run" not in row)
    assert head.startswith("✗ stuck C")
    assert seen.rows[-1].split() == ["wait_here", "4/4", "4"]
    assert seen.screen.cursor.x == 0
    assert b"\x1b[?" not in seen.bytes


def test_ctrl_c_twice_leaves_a_clean_terminal(here: Path) -> None:
    with turnout_run(here, "stuck", "--runner", "thread:2") as seen:
        seen.wait_for(lambda text: re.search("wait_here .* 0/4 +2", text))
        seen.type(b"\x03")
        seen.wait_for(lambda text: "cancelled" in text)
        seen.type(b"\x03")
        assert seen.ended() in (-signal.SIGINT, 130)
    assert seen.screen.cursor.x == 0 or seen.rows[-1] == "^C"
    assert b"\x1b[?" not in seen.bytes


def test_a_program_that_ends_at_once_has_said_what_it_said(here: Path) -> None:
    with turnout_run(here, "dies") as seen:
        seen.wait_for(lambda text: "1/1" in text)
        go_on(here)
        assert seen.ended() == 3
    assert "said last" in seen.rows


def test_a_narrow_terminal(here: Path) -> None:
    with turnout_run(here, "harbour", columns=26, lines=8) as seen:
        seen.wait_for(lambda text: re.search(r"  load +9/10", text))
        assert all(len(row) < 26 for row in picture(seen.text))
        go_on(here)
        assert seen.ended() == 0
    assert "  load   10/10" in seen.rows


def test_a_terminal_that_changes_its_size(here: Path) -> None:
    with turnout_run(here, "harbour", columns=100) as seen:
        seen.wait_for(lambda text: re.search(r"  load .* 9/10", text))
        wide = max(map(len, picture(seen.text)))
        seen.resize(40, 24)
        seen.wait_for(lambda text: picture(text) and max(map(len, picture(text))) < 40)
        assert wide > 40
        seen.resize(90, 24)
        seen.wait_for(lambda text: picture(text) and max(map(len, picture(text))) > 40)
        go_on(here)
        assert seen.ended() == 0
    assert sum(row.startswith("loaded") for row in seen.rows) == 10


def test_many_tasks_fold_into_one_line(here: Path) -> None:
    with turnout_run(here, "widely", lines=12) as seen:
        seen.wait_for(lambda text: re.search("and 33 more", text))
        assert len(picture(seen.text, "widely")) <= 11
        go_on(here)
        assert seen.ended() == 0
    assert any(row.split()[:3] == ["and", "33", "more"] for row in seen.rows)
    assert len(seen.rows) - next(index for index, row in enumerate(seen.rows) if row.startswith("✓")) == 9


def test_a_question_is_not_drawn_over(here: Path) -> None:
    with turnout_run(here, "asks") as seen:
        seen.wait_for(lambda text: "your name? " in f"{text} ")
        seen.type(b"Ada\n")
        assert seen.ended() == 0
    assert seen.rows[-1] == "hello Ada"


def test_in_code_nothing_is_shown_unless_asked_for(here: Path) -> None:
    go_on(here)
    program = f"import sys; sys.path.insert(0, {str(here)!r}); import harbour; harbour.talk()"
    with terminal(sys.executable, "-c", program) as seen:
        assert seen.ended() == 0
    assert "✓" not in seen.text
    assert b"\x1b" not in seen.bytes
    with terminal(sys.executable, "-c", program, environment={"TURNOUT_PROGRESS": "1"}) as seen:
        assert seen.ended() == 0
    assert seen.text.count("✓ harbour Completed") == 2


def test_in_code_each_flow_has_its_picture(here: Path) -> None:
    go_on(here)
    with terminal(sys.executable, here / "harbour.py", lines=60) as seen:
        assert seen.ended() == 0
    first, middle, second = (
        [index for index, row in enumerate(seen.rows) if row.startswith(start)] for start in ("✓", "in b", "✓")
    )
    assert len(first) == 2
    assert first[0] < middle[0] < second[1]
    with terminal(sys.executable, here / "harbour.py", environment={"TURNOUT_PROGRESS": "0"}) as seen:
        assert seen.ended() == 0
    assert "✓" not in seen.text


@pytest.mark.parametrize(
    ("options", "environment", "is_shown"),
    [
        ((), {}, True),
        (("--progress",), {}, True),
        (("--no-progress",), {}, False),
        ((), {"TURNOUT_PROGRESS": "0"}, False),
        (("--progress",), {"TURNOUT_PROGRESS": "0"}, True),
        (("--no-progress",), {"TURNOUT_PROGRESS": "1"}, False),
    ],
)
def test_who_decides_in_a_terminal(
    here: Path, options: tuple[str, ...], environment: Mapping[str, str], is_shown: bool
) -> None:
    go_on(here)
    with turnout_run(here, "harbour", *options, environment=environment) as seen:
        assert seen.ended() == 0
    assert ("✓ harbour" in seen.text) is is_shown
    assert seen.rows[-1] == "45"


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}])
def test_a_terminal_that_cant_draw_gets_plain_lines(here: Path, environment: Mapping[str, str]) -> None:
    go_on(here)
    with turnout_run(here, "harbour", "--progress", columns=150, environment=environment) as seen:
        assert seen.ended() == 0
    assert "turnout: harbour: Completed in" in seen.text
    assert not re.search(rb"\x1b\[\d*[AJ]", seen.bytes)


# Where there is no terminal


@pytest.mark.parametrize(
    ("options", "environment", "is_shown"),
    [
        ((), {}, False),
        (("--progress",), {}, True),
        ((), {"TURNOUT_PROGRESS": "1"}, True),
        (("--no-progress",), {"TURNOUT_PROGRESS": "1"}, False),
    ],
)
def test_without_a_terminal_there_is_a_line_in_the_end(
    here: Path, options: tuple[str, ...], environment: Mapping[str, str], is_shown: bool
) -> None:
    go_on(here)
    target = here / "harbour.py:harbour"
    ended = turnout_command("run", target, "--log-level", "critical", "--json", *options, environment=environment)
    assert ended.status == 0
    assert ended.out.startswith('{"flow": "harbour"')
    assert ended.out.count("\n") == 1
    lines = [line for line in ended.err.splitlines() if line.startswith("turnout: ")]
    assert len(lines) == is_shown
    if is_shown:
        assert re.fullmatch(r"turnout: harbour: Completed in [\d.]+ s; 12 of 12 calls done, 1 failed", lines[0])


def test_what_a_flow_prints_stays_where_it_belongs(here: Path) -> None:
    go_on(here)
    ended = turnout_command("run", here / "harbour.py:harbour", "--log-level", "critical", "--progress")
    assert sorted(ended.out.splitlines()) == ["45", *(f"loaded {number}" for number in range(10))]


@pytest.mark.parametrize("word", WORDS)
def test_what_calls_submit_counts_wherever_they_run(here: Path, word: str) -> None:
    ended = turnout_command("run", here / "harbour.py:deep", "--log-level", "critical", "--progress", "--runner", word)
    assert ended.status == 0
    # Three that sort out, and four times one that unloads two.
    assert ended.err.splitlines()[-1].endswith("s; 15 of 15 calls done, 1 retried")


# In a notebook

NOTEBOOK: Final = """
from turnout import flow, progress, task

@task
def load(name):
    if name == "<b>bad</b>":
        raise ValueError(name)

@flow(name="<i>census</i>")
def census(count):
    load.map(range(count)).wait()
    load.submit("<b>bad</b>").exception()
"""


def cells(*sources: str) -> list[list[dict[str, Any]]]:
    """Run the cells of a notebook, and return what each shows."""
    from jupyter_client.manager import KernelManager

    # The kernel of this interpreter, which is there without being installed.
    manager: Any = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=30)
        shown = []
        for source in sources:
            shown.append(messages := list[dict[str, Any]]())
            number = client.execute(source)
            while True:
                message = client.get_iopub_msg(timeout=30)
                if message["parent_header"].get("msg_id") == number:
                    messages.append({"type": message["msg_type"], **message["content"]})
                    if message["content"].get("execution_state") == "idle":
                        break
        return shown
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_in_a_notebook_a_card_below_the_cell_changes() -> None:
    _, silent, first, second, last = cells(
        NOTEBOOK, "census(3)", "display_it = progress.show()\ncensus(10)", "census(20)", "display_it.close()"
    )
    assert not [message for message in silent + last if "display" in message["type"]]
    for messages, count in ((first, 11), (second, 21)):
        assert not [message for message in messages if message["type"] == "error"], messages
        (made,) = (message for message in messages if message["type"] == "display_data")
        updates = [message for message in messages if message["type"] == "update_display_data"]
        assert updates
        assert {message["transient"]["display_id"] for message in updates} == {made["transient"]["display_id"]}
        text = updates[-1]["data"]["text/html"]
        assert f"{count}/{count}" in text
        assert "Completed in" in text
        assert "&lt;i&gt;census&lt;/i&gt;" in text
        assert "<i>" not in text
        assert "1 failed" in text
