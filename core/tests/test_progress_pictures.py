"""What is drawn of counts: in a terminal of any size, in a notebook, and in words."""

from __future__ import annotations

import html
import re

import pytest
from rich.cells import cell_len

from turnout.progress._counts import Counts, TaskCounts
from turnout.progress._folds import folded
from turnout.progress._notebook import html_of
from turnout.progress._picture import Painter
from turnout.progress._words import told

COLOUR = re.compile(r"\x1b\[[\d;]*m")

LOAD = TaskCounts("load", 400, 200, 40, 10, 5, 4, 12, 33.4)
CLEAN = TaskCounts("clean", 400, 0)
CENSUS = Counts("census", "Crew(4)", (LOAD, CLEAN), 83.0, slots=4, rate=33.4, left=17.6)
ENDED = CENSUS._replace(tasks=(TaskCounts("load", 400, 399, failed=1),), state="Failed", message="ValueError: no\nmore")


@pytest.fixture(autouse=True)
def _no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def plain(counts: Counts, width: int = 100, height: int = 24, encoding: str = "utf-8") -> list[str]:
    return [COLOUR.sub("", line) for line in Painter(encoding).paint(counts, width, height)]


def many(count: int) -> Counts:
    return CENSUS._replace(tasks=tuple(TaskCounts(f"task-{number}", 10, 1) for number in range(count)))


def test_a_picture_shows_all_that_is_known() -> None:
    assert plain(CENSUS) == [
        "census  Crew(4)",
        "                                                  running  failed  retried  cached  cancelled  rate",
        "  load   ━━━━━━━━━━━━━━━━━━━╍──────────  255/400        4      10       12      40          5  33/s",
        "  clean  ──────────────────────────────    0/400",
        "  4 of 4 slots in use · 33/s · 1:23 · about 0:18 left",
    ]


def test_only_columns_are_shown_that_say_something() -> None:
    counts = CENSUS._replace(tasks=(CLEAN,), rate=0.0, left=None, slots=None)
    assert plain(counts) == ["census  Crew(4)", f"  clean  {'─' * 40}  0/400", "  0 running · 1:23"]


@pytest.mark.parametrize("width", [*range(1, 40), 57, 80, 100, 119, 120, 121, 500])
def test_no_line_is_as_wide_as_the_terminal(width: int) -> None:
    wide = CENSUS._replace(
        flow="流れ" * 30, tasks=(LOAD, LOAD._replace(name="仕事" * 20), LOAD._replace(name="x" * 200))
    )
    for counts in (CENSUS, ENDED, wide, many(30)):
        for line in plain(counts, width):
            assert cell_len(line) < max(width, 2)
            assert line == line.rstrip()


def test_rows_stand_below_each_other_whatever_names_are_made_of() -> None:
    wide = CENSUS._replace(tasks=(LOAD, LOAD._replace(name="仕事" * 20)))
    _, _, first, second, _ = plain(wide, 90)
    assert cell_len(first) == cell_len(second)


def test_where_it_is_narrow_the_least_needed_is_left_out() -> None:
    heads = [plain(CENSUS, width)[1].split() for width in (100, 70, 60, 40, 31)]
    everything = ["running", "failed", "retried", "cached", "cancelled", "rate"]
    assert heads == [everything, everything[:4], everything[:3], everything[:2], ["failed"]]
    assert ["━" in "".join(plain(CENSUS, width)) for width in (60, 40)] == [True, False]
    assert plain(CENSUS, 40)[-1] == "  33/s · 1:23 · about 0:18 left"
    assert plain(CENSUS, 20)[1:3] == ["  load   255/400", "  clean    0/400"]


@pytest.mark.parametrize("height", range(1, 40))
def test_a_picture_is_lower_than_the_terminal(height: int) -> None:
    lines = plain(many(50), 80, height)
    assert len(lines) <= max(height - 1, 1)
    if height >= 5:
        assert "more" in lines[-2]
        assert "slots in use" in lines[-1]


def test_many_tasks_are_folded() -> None:
    lines = plain(many(50), 80, 100)
    assert len(lines) == 1 + 16 + 1
    assert lines[-2].split() == ["and", "35", "more", "━━━━" + "─" * 36, "35/350"]


def test_what_runs_is_shown_first_then_what_is_to_come_then_what_failed() -> None:
    runs = TaskCounts("runs", 2, 1, running=1)
    waits = TaskCounts("waits", 2)
    failed = TaskCounts("failed", 2, 1, failed=1)
    fine = TaskCounts("fine", 2, 2)
    for room, names in ((2, {"runs"}), (3, {"runs", "waits"}), (4, {"runs", "waits", "failed", "fine"})):
        shown, rest = folded([fine, failed, waits, runs], room)
        assert {task.name for task in shown} == names
        assert {task.name for task in shown + rest} == {"runs", "waits", "failed", "fine"}
    shown, rest = folded([fine, fine, failed, waits, runs], 4)
    assert [task.name for task in shown] == ["failed", "waits", "runs"]


def test_the_last_picture_is_short() -> None:
    lines = plain(ENDED)
    assert lines[0] == "✗ census Failed after 83 s · 400 calls · 33/s"
    assert lines[1:] == ["                 failed", "  load  400/400       1"]
    assert len(plain(many(50)._replace(state="Completed"), 80, 100)) == 1 + 8


def test_a_flow_that_went_well_and_made_no_calls() -> None:
    assert plain(Counts("empty", "Crew()", (), 0.00123, state="Completed")) == ["✓ empty Completed in 0.00123 s"]


@pytest.mark.parametrize("task", [TaskCounts("t", 10_000, 9_998, failed=1), TaskCounts("t", 10_000, 9_999, running=1)])
def test_a_bar_is_not_full_before_all_is_done(task: TaskCounts) -> None:
    (row,) = (line for line in plain(CENSUS._replace(tasks=(task,)), 80) if line.startswith("  t "))
    assert "╍" in row or "─" in row


def test_one_failure_among_many_calls_is_seen_in_the_bar() -> None:
    lines = Painter("utf-8").paint(CENSUS._replace(tasks=(TaskCounts("t", 10_000, 5_000, failed=1),)), 80, 24)
    assert "\x1b[31m━\x1b[0m" in lines[2]


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = "".join(Painter("utf-8").paint(CENSUS, 80, 24))
    assert "\x1b[32m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*[34]\d", "".join(Painter("utf-8").paint(CENSUS, 80, 24)))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "no such thing", None])
def test_where_lines_cant_be_written_there_are_signs(encoding: str | None) -> None:
    text = "\n".join(Painter(encoding).paint(CENSUS, 80, 24) + Painter(encoding).paint(ENDED, 80, 24))
    assert text.isascii()
    assert "###" in text


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2Jgone", "tab\tbed", "bell\a"])
def test_names_dont_spoil_the_picture(name: str) -> None:
    counts = CENSUS._replace(flow=name, runner=name, tasks=(LOAD._replace(name=name),))
    assert all(line.isprintable() for line in plain(counts))


# Notebooks and words


def test_a_card_is_escaped() -> None:
    markup = "<script>alert('x')</script>&"
    text = html_of(CENSUS._replace(flow=markup, tasks=(LOAD._replace(name=markup),)))
    assert "<script" not in text
    assert text.count(html.escape(markup)) == 2
    failed = html_of(ENDED._replace(message=markup))
    assert "<script" not in failed
    assert html.escape(markup) in failed


def test_a_card_has_a_bar_with_a_part_for_each_end() -> None:
    assert re.findall(r"flex:0 0 ([\d.]+)%", html_of(CENSUS)) == ["50", "10", "2.5", "1.25", "1"]
    assert "255/400" in html_of(CENSUS)
    assert "4 running, 10 failed, 12 retried, 40 cached, 5 cancelled" in html_of(CENSUS)


def test_a_card_folds_many_tasks() -> None:
    text = html_of(many(1000))
    assert text.count("<tr") == 20
    assert "and 981 more" in text


def test_a_card_tells_the_end() -> None:
    assert "Failed after 83 s: ValueError: no · 400 calls · 33/s<" in html_of(ENDED)


def test_a_line_tells_everything() -> None:
    assert told(CENSUS) == (
        "census: 255 of 800 calls done, 10 failed, 12 retried, 40 cached, 5 cancelled; "
        "4 of 4 slots in use, 33/s, 1:23, about 0:18 left"
    )
    assert told(ENDED) == "census: Failed after 83 s: ValueError: no; 400 of 400 calls done, 1 failed"


def test_more_may_run_than_there_were_slots_when_the_flow_began() -> None:
    assert "9 of 9 slots" in told(CENSUS._replace(tasks=(LOAD._replace(running=9),)))
