"""The picture of counts in a terminal: a bar for each task, as wide and as high as there is room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from ._counts import Counts, TaskCounts, added
from ._folds import folded
from ._words import ending, number, pace, rate, sums

__all__ = ["Painter"]

# Text with the names of styles. Rich's own Text would do, and takes ten times as long: it is drawn while calls run.
Line: TypeAlias = list[tuple[str, str]]

# In cells.
_WIDEST_NAME: Final = 32
_WIDEST_BAR: Final = 40
_NARROWEST_BAR: Final = 8
_WIDEST: Final = 120
# Tasks that are shown at most, however high the terminal is: while the flow runs, and when it is over.
_MOST: Final = 16
_MOST_IN_THE_END: Final = 8

# What is counted beside what is done, in the order of the columns, with their colours.
_COLUMNS: Final = {"running": "blue", "failed": "red", "retried": "yellow", "cached": "cyan", "cancelled": "magenta"}
# What is left out where it is too narrow, what can be spared most first.
_DISPENSABLE: Final = ("rate", "cancelled", "cached", "retried", "bar", "running", "failed")
# The parts of a bar, in their order.
_PARTS: Final = (
    ("completed", "green"),
    ("cached", "cyan"),
    ("failed", "red"),
    ("cancelled", "magenta"),
    ("running", "blue"),
)
_STYLES: Final = ("none", "bold", "dim", *dict.fromkeys([*_COLUMNS.values(), *(colour for _, colour in _PARTS)]))
_DONE, _RUNS, _REST = "━", "╍", "─"
_PLAIN: Final = str.maketrans({"━": "#", "╍": "+", "─": "-", "…": ".", "·": "|", "✓": "+", "✗": "x"})


class Painter:
    """Paints counts as lines of text, with colours unless the environment says ``NO_COLOR``.

    Parameters
    ----------
    encoding
        That of the terminal.
    """

    def __init__(self, encoding: str | None) -> None:
        from rich.color import ColorSystem
        from rich.console import Console
        from rich.style import Style

        self._is_plain = not _can_show(encoding)
        has_no_colour = Console(force_terminal=True).no_color
        styles = {name: Style.parse(name) for name in _STYLES}
        self._styles = {name: style.without_color if has_no_colour else style for name, style in styles.items()}
        self._system = ColorSystem.STANDARD

    def paint(self, counts: Counts, width: int, height: int) -> list[str]:
        """Return the lines of a picture that fits in a terminal.

        Parameters
        ----------
        counts
            What is known.
        width, height
            The size of the terminal, in cells. A line is shorter, so that none is broken.
        """
        width = max(min(width, _WIDEST) - 1, 1)
        # What stands above the picture is to be seen as well.
        room = max(height - 4, 1)
        lines = [*_lines(counts, width, room)]
        return [self._text(_cut(line, width)) for line in lines[: max(height - 1, 1)]]

    def _text(self, line: Line) -> str:
        if self._is_plain:
            line = [(text.translate(_PLAIN), style) for text, style in line]
        # Spaces at the end would be broken where the terminal becomes narrower, and are copied with the rest.
        while line and line[-1][0][-1:] in ("", " "):
            *line, (text, style) = line
            line += [(text.rstrip(" "), style)] if text.strip(" ") else []
        return "".join(self._styles[name].render(text, color_system=self._system) for text, name in line)


def _cut(line: Line, width: int) -> Line:
    """Return as much of a line as has room."""
    from rich.cells import cell_len, set_cell_size

    shown: Line = []
    for text, style in line:
        size = cell_len(text)
        if size > width:
            return [*shown, (set_cell_size(text, width - 1) + "…" if width else "", style)]
        shown.append((text, style))
        width -= size
    return shown


def _can_show(encoding: str | None) -> bool:
    try:
        (_DONE + _RUNS + _REST + "…·✓✗").encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _lines(counts: Counts, width: int, room: int) -> Iterator[Line]:
    yield _head(counts)
    shown, rest = folded(counts.tasks, min(room, _MOST_IN_THE_END if counts.state else _MOST))
    if rest:
        shown.append(added(f"and {len(rest)} more", rest))
    if shown:
        yield from _Table(shown, width, is_over=bool(counts.state), has_rest=bool(rest)).lines()
    if not counts.state:
        yield [("  " + _joined(pace(counts), width - 2), "dim")]


def _joined(parts: list[str], width: int) -> str:
    """Return what there is room for: what comes last is wanted most."""
    while len(text := " · ".join(parts)) > width and len(parts) > 1:
        parts = parts[1:]
    return text


def _head(counts: Counts) -> Line:
    name = _printable(counts.flow or "calls")
    if not counts.state:
        return [(name, "bold"), ("  " + _printable(counts.runner), "dim")]
    mark = ("✓ ", "green") if counts.state == "Completed" else ("✗ ", "red")
    # What went wrong may be long, and is told elsewhere as well.
    how = " " + ending(counts._replace(message=""))
    return [mark, (name, "bold"), (how, "none"), ("".join(f" · {each}" for each in sums(counts)), "dim")]


class _Table:
    """The rows of a picture: names, bars and numbers, of which those are left out for which there is no room."""

    def __init__(self, tasks: Sequence[TaskCounts], width: int, *, is_over: bool, has_rest: bool) -> None:
        from rich.cells import cell_len

        self._tasks = tasks
        self._has_rest = has_rest
        every = added("", tasks)
        self._columns = [name for name in _COLUMNS if getattr(every, name)]
        if not is_over and any(_cell(task, "rate") for task in tasks):
            self._columns.append("rate")
        self._done = max(len(_done(task)) for task in tasks)
        self._name = min(max(cell_len(task.name) for task in tasks), _WIDEST_NAME, max(width // 3, 6))
        # In the end all bars are full.
        self._bar = 0 if is_over else _NARROWEST_BAR
        for name in _DISPENSABLE:
            if self._room(width) >= 0:
                break
            if name == "bar":
                self._bar = 0
            elif name in self._columns:
                self._columns.remove(name)
        if self._bar:
            self._bar = min(self._bar + self._room(width), _WIDEST_BAR)

    def _room(self, width: int) -> int:
        """Return how many cells are left over."""
        return width - self._numbers() - sum(self._width(name) + 2 for name in self._columns)

    def _numbers(self) -> int:
        """Return in which cell the columns begin."""
        return 2 + self._name + (2 + self._bar if self._bar else 0) + 2 + self._done

    def _width(self, column: str) -> int:
        return max(len(column), *(len(_cell(task, column)) for task in self._tasks))

    def lines(self) -> Iterator[Line]:
        """Yield the rows, below names of columns if there are any."""
        if self._columns:
            names = "".join(f"  {name:>{self._width(name)}}" for name in self._columns)
            yield [(" " * self._numbers() + names, "dim")]
        for task in self._tasks:
            yield [*self._row(task)]

    def _row(self, task: TaskCounts) -> Iterator[tuple[str, str]]:
        is_rest = self._has_rest and task is self._tasks[-1]
        yield ("  " + _padded(task.name, self._name) + "  ", "dim" if is_rest else "none")
        if self._bar:
            yield from _bar(task, self._bar)
            yield ("  ", "none")
        is_well = task.done >= task.total and not task.failed
        yield (f"{_done(task):>{self._done}}", "green" if is_well else "none")
        for name in self._columns:
            yield (f"  {_cell(task, name):>{self._width(name)}}", _COLUMNS.get(name, "dim"))


def _padded(name: str, width: int) -> str:
    """Return a name that is as wide as all are."""
    from rich.cells import cell_len, set_cell_size

    name = _printable(name)
    return set_cell_size(name, width) if cell_len(name) <= width else set_cell_size(name, width - 1) + "…"


def _printable(name: str) -> str:
    """Return a name in which nothing spoils the picture, as line breaks and escape sequences do."""
    return name if name.isprintable() else "".join(each if each.isprintable() else "?" for each in name)


def _done(task: TaskCounts) -> str:
    return f"{number(task.done)}/{number(task.total)}"


def _cell(task: TaskCounts, column: str) -> str:
    value = getattr(task, column)
    if column == "rate":
        return rate(value) if value and task.done < task.total else ""
    return number(value) if value else ""


def _bar(task: TaskCounts, width: int) -> Iterator[tuple[str, str]]:
    """Yield the parts of a bar, with their colours. Of what is few, but not nothing, there is a cell."""
    counts = [*(getattr(task, name) for name, _ in _PARTS), task.total - task.done - task.running]
    sizes = [max(width * count // max(task.total, 1), count > 0) for count in counts]
    sizes[sizes.index(max(sizes))] += width - sum(sizes)
    for (name, colour), size in zip(_PARTS, sizes, strict=False):
        if size:
            yield ((_RUNS if name == "running" else _DONE) * size, colour)
    yield (_REST * sizes[-1], "dim")
