"""The timeline of a report: a lane for each slot of each worker, and above it how many of them were busy."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ._bokeh import Drawn, bokeh_models, new_figure
from ._colours import PATH, STATE_COLOURS, task_colours
from ._critical_path import Step
from ._lanes import Bar, Lane
from ._slots_figure import slots_figure
from ._summary import Summary

__all__ = ["timeline"]

# In pixels.
_HIGHEST_LANE: Final = 22
_LOWEST_LANE: Final = 6
_USUAL_HEIGHT: Final = 800
_AXIS: Final = 60

# Between the lanes of two workers, in lanes.
_GAP: Final = 0.5
# Of what stands beside a lane, in characters.
_LONGEST: Final = 28
# What can be zoomed into, in seconds.
_SHORTEST: Final = 1e-6

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
glyph.fill_color = {field: fields[this.active], transform: mappers[this.active]};
glyph.line_color = glyph.fill_color;
"""


# What is told of a bar that is pointed at.
_TOLD: Final = (
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
)


class _Row(NamedTuple):
    """Where a lane is drawn."""

    lane: Lane
    y: float


def timeline(summary: Summary, path: Sequence[Step]) -> Drawn:
    """Return the timeline, with what is done and how to filter it.

    Parameters
    ----------
    summary
        What ran.
    path
        The critical path.
    """
    from bokeh.layouts import column, row

    seconds = summary.history.seconds or _SHORTEST
    limits = {"bounds": (-seconds * 0.05, seconds * 1.05), "min_interval": _SHORTEST}
    across = bokeh_models().Range1d(-seconds * 0.01, seconds * 1.01, **limits)
    rows = _rows(summary.lanes)
    lanes = _lanes_figure(rows, across)
    controls = [
        *_draw_bars(lanes, _source(rows, summary), [task.task for task in summary.tasks]),
        *_draw_path(lanes, rows, path, summary),
    ]
    choice = row(*controls, sizing_mode="stretch_width")
    return column(choice, slots_figure(summary, across), lanes, sizing_mode="stretch_width", name="timeline")


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


def _source(rows: Sequence[_Row], summary: Summary) -> Drawn:
    import numpy as np

    models = bokeh_models()

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
    return models.ColumnDataSource(columns)


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


def _mapper(colours: Mapping[str, str]) -> Drawn:
    models = bokeh_models()

    return models.CategoricalColorMapper(factors=list(colours), palette=list(colours.values()))


# Lanes


def _lanes_figure(rows: Sequence[_Row], across: Drawn) -> Drawn:
    models = bokeh_models()

    lowest = rows[-1].y if rows else 0.0
    count = 1 - lowest
    height = round(count * max(_LOWEST_LANE, min(_HIGHEST_LANE, _USUAL_HEIGHT / count)) + _AXIS)
    down = models.Range1d(lowest - 0.3, 1.3, bounds=(lowest - 0.3, 1.3))
    lanes = new_figure(
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
    pan = models.PanTool(dimensions="width")
    # Without Ctrl the wheel is for the page.
    lanes.add_tools(pan, models.WheelZoomTool(dimensions="width", modifiers={"ctrl": True}))
    lanes.toolbar.active_drag = pan
    labels = _labels(rows)
    lanes.yaxis.ticker = models.FixedTicker(ticks=list(labels))
    # In other texts, what stands between $$ is taken for a formula.
    lanes.yaxis.major_label_overrides = {y: models.PlainText(text=label) for y, label in labels.items()}
    lanes.ygrid.visible = False
    return lanes


def _labels(rows: Sequence[_Row]) -> dict[float, str]:
    """Return what stands beside the lanes: the name of each worker, in the middle of its own."""
    places: dict[str, list[float]] = {}
    for row in rows:
        places.setdefault(row.lane.worker, []).append(row.y + 0.5)
    return {sum(ys) / len(ys): _shortened(worker or "?") for worker, ys in places.items()}


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def _draw_bars(lanes: Drawn, source: Drawn, tasks: Sequence[str]) -> list[Drawn]:
    """Draw what ran, and return what chooses which of it is shown, and how."""
    models = bokeh_models()
    shown = set(source.data["state"])
    states = [state for state in STATE_COLOURS if state in shown]
    pick_task, pick_state = _choice("Tasks", tasks), _choice("States", states)
    known = {"task_choice": pick_task, "state_choice": pick_state, "task_names": tasks, "state_names": states}
    by_state, by_task = _mapper(STATE_COLOURS), _mapper(task_colours(tasks))
    colour = {"field": "state", "transform": by_state}
    bars = lanes.quad(
        source=source,
        view=models.CDSView(filter=models.CustomJSFilter(args=known, code=_CHOSEN)),
        fill_color=colour,
        line_color=colour,
        fill_alpha=0.75,
        line_width=1,
        name="bars",
    )
    lanes.add_tools(models.HoverTool(renderers=[bars], tooltips=list(_TOLD), point_policy="follow_mouse", limit=3))
    for widget in (pick_task, pick_state):
        widget.js_on_change("value", models.CustomJS(args={"source": source}, code="source.change.emit()"))
    pick_colour = models.RadioButtonGroup(labels=["colour by state", "colour by task"], active=0, align="end")
    pick_colour.stylesheets = [models.InlineStyleSheet(css=_DARK)]
    known = {"glyph": bars.glyph, "fields": ["state", "task"], "mappers": [by_state, by_task]}
    pick_colour.js_on_change("active", models.CustomJS(args=known, code=_RECOLOUR))
    return [pick_task, pick_state, pick_colour]


def _choice(title: str, names: Sequence[str]) -> Drawn:
    """Return a widget with which some of these names are chosen, or none, which stands for all."""
    models = bokeh_models()

    # Its labels are taken for HTML. Names are those of users.
    options: Any = [(str(number), html.escape(name)) for number, name in enumerate(names)]
    dark = models.InlineStyleSheet(css=_DARK)
    return models.MultiChoice(title=title, options=options, placeholder="all", stylesheets=[dark], min_width=200)


def _draw_path(lanes: Drawn, rows: Sequence[_Row], path: Sequence[Step], summary: Summary) -> list[Drawn]:
    """Draw the bodies of the critical path with a border, and a line from one to the next; return what hides them."""
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
    line = lanes.line(xs, ys, line_color=PATH, line_width=1.5, line_alpha=0.7)
    models = bokeh_models()
    shown = models.CheckboxGroup(labels=["critical path"], active=[0], align="end", width=130)
    shown.stylesheets = [models.InlineStyleSheet(css=_DARK)]
    toggle = "for (const one of drawn) one.visible = this.active.length > 0;"
    shown.js_on_change("active", models.CustomJS(args={"drawn": [borders, line]}, code=toggle))
    return [shown]


def _on_lanes(rows: Sequence[_Row], path: Sequence[Step], summary: Summary) -> Iterator[tuple[Step, float]]:
    """Yield the steps of a path in which a call ran, with where the lane is in which it did."""
    ys = {(bar.call.number, bar.attempt.number): row.y for row in rows for bar in row.lane.bars}
    for step in path:
        if step.name == "running" and step.call is not None:
            attempts = [one for one in summary.history.calls[step.call].attempts if one.started is not None]
            # A call that has been run several times was in several lanes.
            ran = max(one.number for one in attempts if (one.started or 0) <= step.begin)
            yield step, ys[step.call, ran]
