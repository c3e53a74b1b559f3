"""Bokeh, as it is used here: without types, for its own refuse much of what its documentation shows."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["Drawn", "bokeh_models", "new_figure"]

# A figure, a widget, or something in one of them.
Drawn: TypeAlias = Any


def bokeh_models() -> Any:
    """Return the module with the classes of which a page is made."""
    import bokeh.models

    return bokeh.models


def new_figure(**options: Any) -> Drawn:
    """Return a figure that can be read on white and on black, to which things can be added.

    Parameters
    ----------
    options
        What Bokeh shall know of it.
    """
    from bokeh.plotting import figure

    from ._colours import GREY

    drawn: Any = figure(background_fill_color=None, border_fill_color=None, outline_line_color=None, **options)
    drawn.toolbar.logo = None
    drawn.toolbar.autohide = True
    drawn.grid.grid_line_color = GREY
    drawn.grid.grid_line_alpha = 0.2
    for axis in (*drawn.xaxis, *drawn.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = axis.major_label_text_color = GREY
        axis.axis_label_text_color = GREY
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
    return drawn
