# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Figures in the style of the report, as inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trl_ext.monitoring.metrics import finite
from trl_ext.monitoring.samples import as_text

LogHistory = Sequence[Mapping[str, Any]]

# Text, axes and grid are drawn in this colour, which no series uses, and it is then replaced by CSS's currentColor, so
# that one drawing suits a light and a dark page. The series' colours are readable on both.
INK = "#010203"
BLUE, ORANGE, GREEN, GREY = "#3b82f6", "#e8752a", "#17a673", "#8b93a1"
VIOLET = "#a35fd0"
SERIES = (BLUE, ORANGE, GREEN, VIOLET, "#c99a1b", "#d6457f", GREY)
DASHES = ("-", "--", "-.", ":")

MANY_POINTS = 40


class Plot(NamedTuple):
    """One figure: an identifier for the page, title, drawing, what it shows in words, and what is healthy."""

    slug: str
    title: str
    svg: str
    caption: str = ""
    healthy: str = ""


def new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return an empty figure in the style of the report."""
    # Figure without pyplot: no global state, so reports may be written from any thread.
    figure = Figure(figsize=(4.3, 2.7), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(plain(x_label), color=INK, fontsize=10)
    axes.set_ylabel(plain(y_label), color=INK, fontsize=10)
    style_axis(axes, ("left", "bottom"))
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.margins(x=0.02)
    return figure, axes


def style_axis(axes: Axes, visible: Sequence[str]) -> None:
    """Draw ticks and the `visible` sides of the frame in the page's colour."""
    axes.tick_params(colors=INK, labelsize=9)
    for item in (axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()):
        item.set(color=INK, fontsize=9)
    for side, spine in axes.spines.items():
        spine.set(color=INK, alpha=0.5, visible=side in visible)


def count_axis(axes: Axes, end: float) -> None:
    """Make the horizontal axis one of counts, from 0 to `end`: whole numbers, "20k" for 20,000."""
    axes.set_xlim(0, max(end, 1) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))


def short_count(value: float) -> str:
    """Return "950", "20k", "1.5M"."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def value_range(values: Iterable[float], least_span: float = 0.0, *, zero: bool = False) -> tuple[float, float]:
    """Return the ends of a vertical axis that shows `values` and does not make small changes look large.

    Args:
        values: What is drawn.
        least_span: The axis spans at least this, around the middle of the values, or above 0 with `zero`.
        zero: Whether the axis begins at 0, or below it where values do.
    """
    numbers = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(numbers), max(numbers)
    if zero:
        low = min(0.0, low * 1.08)
        return low, max(high * 1.08, low + least_span) or 1.0
    missing = max(least_span - (high - low), 0.08 * (high - low)) or max(abs(high), 1.0) * 0.2
    return low - missing / 2, high + missing / 2


def add_legend(axes: Axes) -> None:
    """Name the labelled series."""
    # Above the axes, where it covers no data.
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        fontsize=9,
        frameon=False,
        labelcolor=INK,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.6,
    )


def draw_line(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, color: str = BLUE, style: str = "-") -> None:
    """Draw a series: its points where there are few, their moving average over a faint line where there are many."""
    if len(x) > MANY_POINTS:
        axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(x, moving_average(y), color=color, linewidth=1.6, linestyle=style, label=label)
    else:
        axes.plot(x, y, color=color, linewidth=1.6, linestyle=style, marker="o", markersize=3, label=label)


def moving_average(values: np.ndarray) -> np.ndarray:
    """Return the centred moving average over a twentieth of the points, shape (points,); few points stay as is."""
    if len(values) <= MANY_POINTS:
        return values
    window = np.ones(max(3, len(values) // 20) // 2 * 2 + 1)
    # Dividing by the same sum over ones makes the window shorter at both ends, instead of pulling them to zero.
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def positions(log_history: LogHistory) -> tuple[list[float], str]:
    """Return where each line of a log is drawn, over episodes if they were logged and over steps otherwise."""
    for key, label in (("episodes", "episodes"), ("step", "optimizer steps")):
        values = [finite(entry.get(key)) for entry in log_history]
        if any(value is not None for value in values):
            return _forward_filled(values), label
    return [float(index) for index in range(len(log_history))], "log entries"


def _forward_filled(values: Sequence[float | None]) -> list[float]:
    # Evaluations are logged right after the training step they belong to, often without its position.
    filled, last = [], 0.0
    for value in values:
        last = last if value is None else value
        filled.append(last)
    return filled


def series(log_history: LogHistory, x: Iterable[float], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and values of the lines that have a finite number under `key`, shape (points,) each."""
    pairs = [(at, finite(entry.get(key))) for at, entry in zip(x, log_history, strict=True)]
    kept = [(at, value) for at, value in pairs if value is not None]
    return np.array([at for at, _ in kept], dtype=float), np.array([value for _, value in kept], dtype=float)


def series_label(name: str, limit: int = 20) -> str:
    """Return a name for a legend, cut so that the legend leaves room for the plot."""
    text = as_text(name)
    return plain(text if len(text) <= limit else f"{text[: limit - 1]}…")


def plain(text: str) -> str:
    """Return a text for matplotlib, which would set what stands between dollar signs as mathematics."""
    return as_text(text).replace("$", r"\$")


def to_svg(figure: Figure, slug: str) -> str:
    """Return the drawing as inline SVG."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    # Several drawings share one page, so their identifiers and the references to them get a prefix.
    drawing = re.sub(r'\bid="', f'id="{slug}-', drawing)
    return re.sub(r'(href="|url\()#', rf"\1#{slug}-", drawing)
