"""A picture at the lower end of a terminal: what is written meanwhile stands above it, as it was written."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

import pyte
import pytest
from pyte.modes import LNM

from turnout.progress import _screen
from turnout.progress._screen import Screen


class Terminal(io.TextIOWrapper):
    """A stream that leads to a terminal, which keeps what is on it."""

    def __init__(self, columns: int = 40, lines: int = 10) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        # What the system's side of a real terminal does with the end of a line.
        self.screen.set_mode(LNM)
        self.bytes = _Feed(pyte.ByteStream(self.screen))
        super().__init__(self.bytes, encoding="utf-8", write_through=True)

    @property
    def rows(self) -> list[str]:
        """What stands there, above the screen too, without empty lines at the end."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top
        ]
        rows = [row.rstrip() for row in [*above, *self.screen.display]]
        while rows and not rows[-1]:
            rows.pop()
        return rows


class _Feed(io.RawIOBase):
    name = "terminal"

    def __init__(self, stream: pyte.ByteStream) -> None:
        self.stream = stream
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.count += 1
        self.stream.feed(bytes(data))
        return len(data)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()

    def size(_: Screen) -> os.terminal_size:
        return os.terminal_size((terminal.screen.columns, terminal.screen.lines))

    monkeypatch.setattr(Screen, "size", size)
    return terminal


@pytest.fixture
def screen(terminal: Terminal) -> Iterator[Screen]:
    screen = Screen(terminal)
    yield screen
    screen.give_back()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all that is written wait for the next picture."""
    monkeypatch.setattr(_screen, "_BURST", 0.0)


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have whole lines be written at once, however many come."""
    monkeypatch.setattr(_screen, "_BURST", 1e9)


def test_a_picture_takes_the_place_of_the_one_before(screen: Screen, terminal: Terminal) -> None:
    screen.draw(["one", "two", "three"])
    screen.draw(["four"])
    assert terminal.rows == ["four"]
    screen.draw(["five", "six"])
    assert terminal.rows == ["five", "six"]


def test_text_stands_above_the_picture_at_once(screen: Screen, terminal: Terminal) -> None:
    print("before", file=terminal)
    screen.draw(["picture", "of two lines"])
    for number in range(30):
        print(f"line {number}", file=terminal)
        assert terminal.rows[-3:] == [f"line {number}", "picture", "of two lines"]
    assert terminal.rows[:-2] == ["before", *(f"line {number}" for number in range(30))]


def test_much_text_comes_with_the_next_picture(hurry: None, screen: Screen, terminal: Terminal) -> None:
    screen.draw(["picture"])
    for number in range(100):
        print(f"line {number}", file=terminal)
    assert terminal.rows == ["picture"]
    writes = terminal.bytes.count
    screen.draw(["next"])
    assert terminal.rows == [*(f"line {number}" for number in range(100)), "next"]
    assert terminal.bytes.count == writes + 1


def test_few_lines_a_second_are_written_at_once_and_more_are_not(
    screen: Screen, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0] * 8 + [100.11] * 8)
    monkeypatch.setattr(_screen, "_BURST", 5.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    screen.draw(["picture"])
    screen._credit, screen._since = 5.0, 100.0
    shown = []
    for number in range(16):
        terminal.write(f"line {number}\n")
        shown.append(f"line {number}" in terminal.rows)
    assert shown == [*[True] * 5, *[False] * 3, *[True] * 4, *[False] * 4]


def test_not_too_much_is_kept_back(hurry: None, screen: Screen, terminal: Terminal) -> None:
    screen.draw(["picture"])
    terminal.write(f"{'x' * 40}\n" * 2000)
    assert len(terminal.rows) > 1000


def test_a_line_that_was_begun_goes_on(screen: Screen, terminal: Terminal) -> None:
    screen.draw(["picture"])
    print("one", end="", file=terminal)
    screen.draw(["picture"])
    assert terminal.rows == ["one", "picture"]
    print(", two", end="", file=terminal)
    screen.draw(["picture"])
    print(", three", file=terminal)
    assert terminal.rows == ["one, two, three", "picture"]


def test_a_bar_of_somebody_elses_moves_above_the_picture(screen: Screen, terminal: Terminal) -> None:
    screen.draw(["picture"])
    for percent in (10, 20, 30):
        terminal.write(f"\r\x1b[32m{percent}%\x1b[0m")
        screen.draw(["picture"])
        assert terminal.rows == [f"{percent}%", "picture"]
    terminal.write("\n")
    assert terminal.rows == ["30%", "picture"]


def test_a_line_that_was_begun_and_is_long_does_not_push_the_picture(screen: Screen, terminal: Terminal) -> None:
    screen.draw(["picture"])
    terminal.write("x" * 100)
    screen.draw(["picture"])
    assert terminal.rows == ["x" * 39, "picture"]
    terminal.write("\n")
    assert terminal.rows == ["x" * 40, "x" * 40, "x" * 20, "picture"]


def test_text_is_written_as_it_is(screen: Screen, terminal: Terminal) -> None:
    text = "\x1b]8;;http://localhost\x07link\x1b]8;;\x07\ttab \x1b[1mbold\x1b[0m  two  spaces [b]not markup[/b]\n"
    written: list[str] = []
    screen.draw([])
    screen._write = written.append
    terminal.write(text)
    screen.draw([])
    assert "".join(written) == text


def test_the_last_picture_stays_and_text_follows_it(hurry: None, screen: Screen, terminal: Terminal) -> None:
    screen.draw(["picture", "of two lines"])
    print("said last", file=terminal)
    print("and begun", end="", file=terminal)
    screen.close(["the end"])
    print("after", file=terminal)
    assert terminal.rows == ["said last", "and begun", "the end", "after"]
    assert "write" not in vars(terminal)


def test_closing_twice_is_fine(screen: Screen, terminal: Terminal) -> None:
    screen.close(["the end"])
    screen.close(["the end"])
    screen.draw(["too late"])
    assert terminal.rows == ["the end"]


def test_whoever_keeps_the_stream_writes_above_the_picture(terminal: Terminal) -> None:
    handler = logging.StreamHandler(terminal)
    logger = logging.getLogger("turnout_tests_screen")
    logger.propagate = False
    logger.addHandler(handler)
    screen = Screen(terminal)
    screen.draw(["picture"])
    logger.warning("careful")
    terminal.writelines(["a\n", "b\n"])
    assert terminal.rows == ["careful", "a", "b", "picture"]
    screen.close([])


def test_two_streams_of_one_terminal_keep_their_order(terminal: Terminal) -> None:
    stdout = io.TextIOWrapper(io.BytesIO())
    screen = Screen(terminal, [stdout, terminal])
    screen.draw(["picture"])
    print("out", file=stdout)
    print("err", file=terminal)
    print("out", file=stdout)
    screen.close(["picture"])
    assert terminal.rows == ["out", "err", "out", "picture"]
    print("after", file=stdout)
    stdout.flush()
    assert stdout.buffer.getvalue() == b"after\n"


def test_a_stream_that_takes_no_attributes_is_left_alone(terminal: Terminal) -> None:
    class Narrow:
        __slots__ = ()

        def write(self, text: str) -> int:
            return len(text)

    narrow = Narrow()
    screen = Screen(terminal, [narrow])  # type: ignore[list-item]
    narrow.write("x")
    screen.close(["picture"])
    assert terminal.rows == ["picture"]


def test_where_the_terminal_became_narrower_no_text_is_lost(screen: Screen, terminal: Terminal) -> None:
    print("text", file=terminal)
    screen.draw(["x" * 39, "y" * 39])
    terminal.screen.resize(10, 20)
    screen.draw(["x" * 19])
    print("more", file=terminal)
    assert terminal.rows == ["text", "more", "x" * 19]


def test_what_is_typed_meanwhile_goes_with_the_picture(screen: Screen, terminal: Terminal) -> None:
    screen.draw(["picture"])
    terminal.screen.draw("^C")
    screen.draw(["picture"])
    assert terminal.rows == ["picture"]


def test_what_stood_there_before_stays(screen: Screen, terminal: Terminal) -> None:
    terminal.screen.draw("$ turnout run")
    screen.draw(["picture"])
    screen.draw(["end"])
    assert terminal.rows == ["$ turnout run", "end"]


def test_many_threads_write_whole_lines(screen: Screen, terminal: Terminal) -> None:
    def write(name: str) -> None:
        for number in range(100):
            terminal.write(f"{name} {number}\n")

    screen.draw(["picture"])
    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(terminal.rows) == sorted(
        [*(f"{name} {number}" for name in "abcd" for number in range(100)), "picture"]
    )


def test_only_text_is_taken(screen: Screen, terminal: Terminal) -> None:
    with pytest.raises(TypeError, match="must be str, not bytes"):
        terminal.write(b"bytes")  # type: ignore[arg-type]


def test_a_process_that_is_forked_writes_by_itself(screen: Screen, terminal: Terminal) -> None:
    screen.draw(["picture"])
    child = os.fork()
    if not child:
        os._exit("write" in vars(terminal))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "write" in vars(terminal)


def test_no_mode_of_the_terminal_is_changed(screen: Screen, terminal: Terminal) -> None:
    written: list[str] = []
    screen._write = written.append
    screen.draw(["one", "two"])
    terminal.write("text")
    screen.close(["end"])
    assert "\x1b[?" not in "".join(written)
    assert sys.stderr is not terminal
