"""The timeline of a report: a lane for each slot of each worker, and above it how many of them were busy."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .._units import shown_seconds
from ._colours import GREY, PATH, STATE_COLOURS, task_colours
from ._critical_path import Step
from ._lanes import Bar, Lane
from ._summary import Summary

if TYPE_CHECKING:
    from bokeh.models import CategoricalColorMapper, ColumnDataSource, Filter, GlyphRenderer, LayoutDOM, MultiChoice, Range1d
    from bokeh.plotting import figure

__all__ = ["plain", "timeline"]

# In pixels.
_LANE: Final = 22
_HIGHEST: Final = 640
_LOWEST: Final = 90

# Between the lanes of two workers, in lanes.
_GAP: Final = 0.5
# Points in time at which the slots that are busy are counted.
_MOMENTS: Final = 500
_AREAS: Final = 9

_DARK: Final = """
@media (prefers-color-scheme: dark) {
  :host { --background-color: #22262c; --text-color: #d7dbe0; --border-color: #49505a; color: #d7dbe0; }
  .bk-input, .choices__inner, .choices__input, .choices__list--dropdown, .bk-btn, .bk-btn-default {
    background-color: #22262c !important; color: #d7dbe0 !important; border-color: #49505a !important;
  }
  .bk-btn.bk-active { background-color: #3b4350 !important; }
  .choices__list--dropdown .choices__item--selectable.is-highlighted { background-color: #3b4350 !important; }
  label { color: #d7dbe0; }
}
"""

_CHOSEN: Final = """
const tasks = new Set(task_choice.value.map((number) => task_names[number]));
const states = new Set(state_choice.value.map((number) => state_names[number]));
const {task, state} = source.data;
const shown = [];
for (let i = 0; i < task.length; i++) {
  if ((tasks.size == 0 || tasks.has(task[i])) && (states.size == 0 || states.has(state[i]))) shown.push(i);
}
return shown;
"""

_RECOLOUR: Final = """
glyph.fill_color = {field: names[this.active], transform: mappers[this.active]};
glyph.line_color = glyph.fill_color;
"""


class _Row(NamedTuple):
    """Where a lane is drawn."""

    lane: Lane
    y: float


def timeline(summary: Summary, path: Sequence[Step]) -> LayoutDOM:
    """Return the timeline, with what is done and how to filter it.

    Parameters
    ----------
    summary
        What ran.
    path
        The critical path.
    """
    from bokeh.layouts import column, row
    from bokeh.models import CheckboxGroup, CustomJS, CustomJSFilter, InlineStyleSheet, RadioButtonGroup, Range1d

    dark = InlineStyleSheet(css=_DARK)
    seconds = summary.history.seconds or 1e-6
    margin = seconds * 0.01
    across = Range1d(-margin, seconds + margin, bounds=(-seconds * 0.05, seconds * 1.05), min_interval=1e-6)
    rows = _rows(summary.lanes)
    tasks = [task.task for task in summary.tasks]
    states = [state for state in STATE_COLOURS if any(state == bar.attempt.state for bar in _bars(rows))]
    pick_task, pick_state = _choice("Tasks", tasks), _choice("States", states)
    colour = RadioButtonGroup(labels=["colour by state", "colour by task"], active=0, stylesheets=[dark], align="end")
    show_path = CheckboxGroup(labels=["critical path"], active=[0], stylesheets=[dark], align="end", width=130)

    source = _source(rows, summary)
    lanes = _lanes_figure(rows, across, summary)
    names = {"task_names": tasks, "state_names": states}
    chosen = CustomJSFilter(args={"task_choice": pick_task, "state_choice": pick_state, **names}, code=_CHOSEN)
    bars = _draw_bars(lanes, source, chosen)
    for widget in (pick_task, pick_state):
        widget.js_on_change("value", CustomJS(args={"source": source}, code="source.change.emit()"))
    mappers = [_mapper(dict(STATE_COLOURS)), _mapper(task_colours(tasks))]
    recolour = {"glyph": bars.glyph, "names": ["state", "task"], "mappers": mappers}
    colour.js_on_change("active", CustomJS(args=recolour, code=_RECOLOUR))
    drawn = _draw_path(lanes, rows, path, summary)
    toggle = CustomJS(args={"drawn": drawn}, code="for (const one of drawn) one.visible = this.active.length > 0")
    show_path.js_on_change("active", toggle)
    busy = _busy_figure(summary, across)
    choice = row(pick_task, pick_state, colour, show_path, sizing_mode="stretch_width")
    return column(choice, busy, lanes, sizing_mode="stretch_width", name="timeline")


def _choice(title: str, names: Sequence[str]) -> MultiChoice:
    """Return a widget with which some of these names are chosen, or none, which stands for all."""
    from bokeh.models import InlineStyleSheet, MultiChoice

    # Its labels are taken for HTML. Names are those of users.
    options: Any = [(str(number), html.escape(name)) for number, name in enumerate(names)]
    dark = InlineStyleSheet(css=_DARK)
    return MultiChoice(title=title, options=options, placeholder="all", stylesheets=[dark], min_width=200)


def _rows(lanes: Sequence[Lane]) -> list[_Row]:
    """Return where lanes are drawn, from the top down."""
    rows: list[_Row] = []
    y = 0.0
    for index, lane in enumerate(lanes):
        if index:
            y -= 1 if lane.worker == lanes[index - 1].worker else 1 + _GAP
        rows.append(_Row(lane, y))
    return rows


def _bars(rows: Sequence[_Row]) -> list[Bar]:
    return [bar for row in rows for bar in row.lane.bars]


def _shown_state(bar: Bar) -> str:
    return bar.attempt.state if bar.attempt is bar.call.attempts[-1] else "Retrying"


def _inset(depth: int) -> float:
    """Return how far a bar is from the upper border of its lane: those inside of others are lower."""
    return 0.08 + min(depth, 4) * 0.16


def _source(rows: Sequence[_Row], summary: Summary) -> ColumnDataSource:
    import numpy as np
    from bokeh.models import ColumnDataSource

    begin, end = summary.history.begin, summary.history.end
    bars = _bars(rows)
    before = [_before(bar, end) for bar in bars]
    columns: dict[str, Any] = {
        "left": np.array([bar.begin - begin for bar in bars]),
        "right": np.array([bar.end - begin for bar in bars]),
        "top": np.array([row.y + 1 - _inset(bar.depth) for row in rows for bar in row.lane.bars], np.float32),
        "bottom": np.array([row.y + 0.08 for row in rows for _ in row.lane.bars], np.float32),
        "seconds": np.array([bar.end - bar.begin for bar in bars]),
        "attempt": np.array([bar.attempt.number for bar in bars], np.int32),
        "task": [bar.call.task for bar in bars],
        "name": [bar.call.name for bar in bars],
        "state": [_shown_state(bar) for bar in bars],
        "message": [bar.attempt.message or bar.call.message for bar in bars],
    }
    for phase in ("waiting", "queued", "sending"):
        columns[phase] = np.array([seconds.get(phase, 0.0) for seconds in before], np.float32)
    return ColumnDataSource(columns)


def _before(bar: Bar, end: float) -> dict[str, float]:
    """Return how long a call was in which phase before this attempt, and since the one before, if there was one."""
    seconds: dict[str, float] = {}
    for name, begin, until in bar.call.phases(end):
        if begin >= bar.begin and name == "running":
            break
        if name == "running":
            seconds.clear()
        seconds[name] = until - begin
    return seconds


def _mapper(colours: dict[str, str]) -> CategoricalColorMapper:
    from bokeh.models import CategoricalColorMapper

    return CategoricalColorMapper(factors=list(colours), palette=list(colours.values()))


# Lanes


def _lanes_figure(rows: Sequence[_Row], across: Range1d, summary: Summary) -> figure:
    from bokeh.models import FixedTicker, PanTool, Range1d, WheelZoomTool
    from bokeh.plotting import figure

    lowest = rows[-1].y if rows else 0.0
    height = round(min(_HIGHEST, max(_LOWEST, (1 - lowest) * _LANE + 60)))
    down = Range1d(lowest - 0.3, 1.3, bounds=(lowest - 0.3, 1.3))
    lanes = figure(
        x_range=across,
        y_range=down,
        height=height,
        sizing_mode="stretch_width",
        output_backend="webgl",
        tools="box_zoom,reset,save",
        toolbar_location="right",
        name="lanes",
        x_axis_label="seconds",
    )
    dimensions: Any = "both" if height == _HIGHEST else "width"
    pan = PanTool(dimensions=dimensions)
    lanes.add_tools(pan, WheelZoomTool(dimensions=dimensions, modifiers={"ctrl": True}))
    lanes.toolbar.active_drag = pan
    labels = _labels(rows)
    lanes.yaxis.ticker = FixedTicker(ticks=list(labels))
    lanes.yaxis.major_label_overrides = dict(labels)
    lanes.ygrid.visible = False
    plain(lanes)
    return lanes


def _labels(rows: Sequence[_Row]) -> dict[float, str]:
    """Return what stands beside the lanes: the name of each worker, in the middle of its own."""
    places: dict[str, list[float]] = {}
    for row in rows:
        places.setdefault(row.lane.worker, []).append(row.y + 0.5)
    return {sum(ys) / len(ys): worker or "?" for worker, ys in places.items()}


def plain(drawn: figure) -> None:
    """Have a figure be readable on white and on black."""
    drawn.background_fill_color = drawn.border_fill_color = None
    drawn.outline_line_color = None
    drawn.toolbar.logo = None
    drawn.toolbar.autohide = True
    drawn.grid.grid_line_color = GREY
    drawn.grid.grid_line_alpha = 0.2
    for axis in (*drawn.xaxis, *drawn.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = axis.major_label_text_color = GREY
        axis.axis_label_text_color = GREY
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"


def _draw_bars(lanes: figure, source: ColumnDataSource, chosen: Filter) -> GlyphRenderer[Any]:
    from bokeh.models import CDSView, HoverTool

    by_state: Any = {"field": "state", "transform": _mapper(dict(STATE_COLOURS))}
    bars = lanes.quad(
        source=source,
        view=CDSView(filter=chosen),
        fill_color=by_state,
        line_color=by_state,
        fill_alpha=0.75,
        line_width=1,
        name="bars",
    )
    told = [
        ("", "@name"),
        ("task", "@task"),
        ("state", "@state"),
        ("attempt", "@attempt"),
        ("began", "@left{0.[000000]} s"),
        ("ran", "@seconds{0.[000000]} s"),
        ("waited for others", "@waiting{0.[000000]} s"),
        ("for room", "@queued{0.[000000]} s"),
        ("sent within", "@sending{0.[000000]} s"),
        ("", "@message"),
    ]
    lanes.add_tools(HoverTool(renderers=[bars], tooltips=told, point_policy="follow_mouse", limit=3))
    return bars


def _draw_path(lanes: figure, rows: Sequence[_Row], path: Sequence[Step], summary: Summary) -> list[Any]:
    """Draw the bodies of the critical path with a border, and a line from one to the next."""
    begin = summary.history.begin
    pieces = [(step.begin - begin, step.end - begin, y) for step, y in _on_lanes(rows, path, summary)]
    if not pieces:
        return []
    borders = lanes.quad(
        left=[left for left, _, _ in pieces],
        right=[right for _, right, _ in pieces],
        top=[y + 0.98 for _, _, y in pieces],
        bottom=[y + 0.02 for _, _, y in pieces],
        fill_color=None,
        line_color=PATH,
        line_width=2,
    )
    xs = [x for left, right, _ in pieces for x in (left, right)]
    ys = [y + 0.5 for _, _, y in pieces for _ in range(2)]
    return [borders, lanes.line(xs, ys, line_color=PATH, line_width=1.5, line_alpha=0.7)]


def _on_lanes(rows: Sequence[_Row], path: Sequence[Step], summary: Summary) -> Iterator[tuple[Step, float]]:
    """Yield the steps of a path in which a call ran, with where the lane is in which it did."""
    ys = {(row.lane.worker, row.lane.slot): row.y for row in rows}
    for step in path:
        if step.name == "running" and step.call is not None:
            attempts = [one for one in summary.history.calls[step.call].attempts if one.started is not None]
            # A call that has been run several times was in several lanes.
            ran = max((one for one in attempts if (one.started or 0) <= step.begin), key=lambda one: one.number)
            yield step, ys[ran.worker, ran.slot]


# Slots


def _busy_figure(summary: Summary, across: Range1d) -> figure:
    """Return how many slots were busy, by task, in the course of time."""
    import numpy as np
    from bokeh.models import Range1d, Span
    from bokeh.plotting import figure

    history, tasks = summary.history, [task.task for task in summary.tasks]
    edges = np.linspace(0, history.seconds or 1e-6, _MOMENTS + 1)
    shown, others = tasks[:_AREAS], set(tasks[_AREAS:])
    spans: dict[str, list[tuple[float, float]]] = {task: [] for task in shown}
    spans |= {"others": []} if others else {}
    for lane in summary.lanes:
        for bar in lane.bars:
            if not bar.depth:
                name = "others" if bar.call.task in others else bar.call.task
                spans[name].append((bar.begin - history.begin, bar.end - history.begin))
    columns: dict[str, Any] = {f"a{number}": _busy(np.array(one), edges) for number, one in enumerate(spans.values())}
    columns["x"] = (edges[:-1] + edges[1:]) / 2
    colours = [task_colours(tasks).get(name, GREY) for name in spans]
    busy = figure(
        x_range=across,
        y_range=Range1d(0, summary.slots * 1.05 or 1),
        height=120,
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        name="busy",
        y_axis_label="slots busy",
    )
    busy.varea_stack([f"a{number}" for number in range(len(spans))], x="x", color=colours, alpha=0.85, source=columns)
    busy.add_layout(Span(location=summary.slots, dimension="width", line_color=GREY, line_dash="dashed"))
    busy.xaxis.visible = False
    busy.yaxis.ticker.desired_num_ticks = 3  # type: ignore[attr-defined]
    plain(busy)
    return busy


def _busy(spans: Any, edges: Any) -> Any:
    """Return how many of some spans of time there are between two edges, on average.

    Up to a time t, spans that begin at b and end at e have taken the sum of t - b over those that have begun, less the
    sum of t - e over those that have ended.
    """
    import numpy as np

    if not len(spans):
        return np.zeros(len(edges) - 1)

    def since(times: Any) -> Any:
        times = np.sort(times)
        counts = np.searchsorted(times, edges)
        return counts * edges - np.concatenate([[0.0], np.cumsum(times)])[counts]

    return np.diff(since(spans[:, 0]) - since(spans[:, 1])) / np.diff(edges)
