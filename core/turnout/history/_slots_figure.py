"""How many slots were busy in the course of time, and with which tasks."""

from __future__ import annotations

from typing import Any, Final

from ._bokeh import Drawn, bokeh_models, new_figure
from ._colours import GREY, task_colours
from ._summary import Summary

__all__ = ["slots_figure"]

# Points in time at which slots that are busy are counted, and how many tasks are told apart.
_MOMENTS: Final = 500
_AREAS: Final = 9


def slots_figure(summary: Summary, across: Drawn) -> Drawn:
    """Return how many slots were busy, by task, in the course of time."""
    import numpy as np

    models = bokeh_models()

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
    busy = new_figure(
        x_range=across,
        y_range=models.Range1d(0, summary.slots * 1.05 or 1),
        height=120,
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        name="busy",
        y_axis_label="slots busy",
    )
    busy.varea_stack([f"a{number}" for number in range(len(spans))], x="x", color=colours, alpha=0.85, source=columns)
    busy.add_layout(models.Span(location=summary.slots, dimension="width", line_color=GREY, line_dash="dashed"))
    busy.xaxis.visible = False
    busy.yaxis.ticker.desired_num_ticks = 3
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
