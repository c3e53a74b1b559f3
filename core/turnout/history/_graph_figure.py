"""The graph of a report: calls that are alike are one node, as in :meth:`turnout.Flow.visualize`, with their times."""

from __future__ import annotations

import statistics
from typing import Any, Final, NamedTuple

from .._folding import Drawing, Node, folded, lines_of
from ._bokeh import Drawn, bokeh_models, new_figure
from ._colours import GREY, STATE_COLOURS, task_colours
from ._graphs import records_of
from ._summary import Summary

__all__ = ["graph_figure", "text_colours"]

_TEXT_COLOURS: Final = """
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const colour = () => {
  for (const label of labels) label.glyph.text_color = {value: dark.matches ? "#dde1e6" : "#1b2128"};
};
dark.addEventListener("change", colour);
colour();
"""

# In pixels: from the middle of one node to that of the next, a line of text, and a character of it.
_DOWN: Final = 120
_LINE: Final = 17
_CHARACTER: Final = 7
_BESIDE: Final = 30


class _Place(NamedTuple):
    """Where a node is drawn, in pixels, and how large."""

    x: float
    y: float
    width: float
    height: float


def graph_figure(summary: Summary) -> Drawn:
    """Return the graph of what was submitted and what waited for what.

    Parameters
    ----------
    summary
        What ran.
    """
    models = bokeh_models()

    drawing = folded(*records_of(summary.history))
    texts = [[*lines_of(node), *_box_of(drawing, node)] for node in drawing.nodes]
    places = _places(drawing, texts)
    width = max((place.x + place.width / 2 for place in places), default=0) + _BESIDE
    height = max((place.y + place.height / 2 for place in places), default=0) + _BESIDE
    graph = new_figure(
        width=round(width),
        height=round(height),
        # As on a screen, so that a unit is a pixel: y grows downwards.
        x_range=models.Range1d(0, width),
        y_range=models.Range1d(height, 0),
        min_border=0,
        tools="",
        toolbar_location=None,
        name="graph",
    )
    graph.axis.visible = graph.grid.visible = False
    _draw_edges(graph, drawing, places)
    _draw_nodes(graph, drawing, places, texts, summary)
    return graph


def _box_of(drawing: Drawing, node: Node) -> list[str]:
    """Return the line that says which flow a node is of, where there are several."""
    return [f"in {drawing.boxes[node.box].name}"] if node.box and len(drawing.boxes) > 1 else []


def text_colours(document: Drawn) -> Drawn:
    """Return what gives the texts of the graph in a document the colour of the page: a canvas knows no style sheets."""
    return bokeh_models().CustomJS(args={"labels": list(document.select({"name": "labels"}))}, code=_TEXT_COLOURS)


# Layout


def _places(drawing: Drawing, texts: list[list[str]]) -> list[_Place]:
    sizes = [(max(map(len, lines)) * _CHARACTER + 24, len(lines) * _LINE + 16) for lines in texts]
    rows = _rows(drawing)
    widths = [sum(sizes[number][0] + _BESIDE for number in row) for row in rows]
    places = [_Place(0, 0, 0, 0)] * len(sizes)
    y = 0.0
    for row, wide in zip(rows, widths, strict=True):
        x = (max(widths) - wide) / 2 + _BESIDE
        highest = max(sizes[number][1] for number in row)
        for number in row:
            width, height = sizes[number]
            places[number] = _Place(x + width / 2, y + _BESIDE + highest / 2, width, height)
            x += width + _BESIDE
        y += highest + _DOWN / 2
    return places


def _rows(drawing: Drawing) -> list[list[int]]:
    """Return the nodes from the top down: each below those that it needs; what needs itself in turn is in one row.

    Within a row each node is about below the middle of those that it needs, so that few edges cross.
    """
    import networkx as nx  # type: ignore[import-untyped]

    graph: Any = nx.DiGraph()
    graph.add_nodes_from(range(len(drawing.nodes)))
    graph.add_edges_from(_ends(drawing))
    circles = nx.condensation(graph)
    rows: list[list[int]] = []
    place: dict[int, float] = {}
    for generation in nx.topological_generations(circles):
        row = sorted(number for circle in generation for number in circles.nodes[circle]["members"])
        above = {number: [place[source] for source in graph.predecessors(number) if source in place] for number in row}
        middles = {number: statistics.fmean(places or [0.5]) for number, places in above.items()}
        row.sort(key=middles.__getitem__)
        place |= {number: (index + 0.5) / len(row) for index, number in enumerate(row)}
        rows.append(row)
    return rows


def _ends(drawing: Drawing) -> list[tuple[int, int]]:
    """Return which nodes edges lead from and to: one to a box leads to the first node in it."""
    first: dict[int, int] = {}
    for number, node in enumerate(drawing.nodes):
        box = node.box
        while box is not None:
            first.setdefault(box, number)
            box = drawing.boxes[box].parent
    return [(edge.source, first[edge.target] if edge.to_box else edge.target) for edge in drawing.edges]


# Drawing


def _draw_edges(graph: Drawn, drawing: Drawing, places: list[_Place]) -> None:
    models = bokeh_models()

    for edge, (source, target) in zip(drawing.edges, _ends(drawing), strict=True):
        begin, end = places[source], places[target]
        dash: Any = "dotted" if edge.submits else "dashed" if edge.waits_only else "solid"
        colour: Any = {"line_color": GREY, "line_dash": dash, "line_width": 1.5}
        if source == target:
            right = begin.x + begin.width / 2
            graph.bezier(
                right, begin.y - 8, right, begin.y + 8, right + 26, begin.y - 22, right + 26, begin.y + 22, **colour
            )
            continue
        goes_down = end.y > begin.y
        sign = 1 if goes_down else -1
        head = models.VeeHead(size=9, fill_color=GREY, line_color=GREY)
        ends = {"x_start": begin.x, "x_end": end.x}
        ends |= {"y_start": begin.y + sign * begin.height / 2, "y_end": end.y - sign * end.height / 2}
        graph.add_layout(models.Arrow(end=head, **ends, **colour))
        if edge.label:
            middle = {"x": (begin.x + end.x) / 2, "y": (ends["y_start"] + ends["y_end"]) / 2}
            graph.text(
                **middle, text=[edge.label], text_font_size="11px", text_color=GREY, x_offset=5, text_baseline="middle"
            )


def _draw_nodes(graph: Drawn, drawing: Drawing, places: list[_Place], texts: list[list[str]], summary: Summary) -> None:
    models = bokeh_models()

    colours = task_colours([task.task for task in summary.tasks])
    columns: dict[str, Any] = {
        "x": [place.x for place in places],
        "y": [place.y for place in places],
        "width": [place.width for place in places],
        "height": [place.height for place in places],
        "text": ["\n".join(lines) for lines in texts],
        "fill": [colours.get(node.name, GREY) for node in drawing.nodes],
        "line": [STATE_COLOURS["Failed"] if node.failures else colours.get(node.name, GREY) for node in drawing.nodes],
    }
    source = models.ColumnDataSource(columns)
    graph.rect(
        "x",
        "y",
        "width",
        "height",
        source=source,
        fill_color="fill",
        fill_alpha=0.22,
        line_color="line",
        line_width=2,
        border_radius=6,
        name="nodes",
    )
    graph.text(
        "x",
        "y",
        "text",
        source=source,
        text_color=GREY,
        text_font_size="13px",
        text_align="center",
        name="labels",
        text_baseline="middle",
    )
