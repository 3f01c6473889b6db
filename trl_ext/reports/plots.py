# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The plots of the report, as inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from trl_ext.monitoring.metrics import finite
from trl_ext.monitoring.samples import as_text, shorten

LogHistory = Sequence[Mapping[str, Any]]

# Text, axes and grid are drawn in this colour, which no series uses, and it is then replaced by CSS's currentColor, so
# that one drawing suits a light and a dark page. The series' colours are readable on both.
INK = "#010203"
BLUE, ORANGE, GREEN, GREY = "#3b82f6", "#e8752a", "#17a673", "#8b93a1"

_MANY_POINTS = 40
_MOST_DOTS = 300
_KL_TOLERANCE = 0.25


class Plot(NamedTuple):
    """One figure: an identifier for the page, title, drawing and caption."""

    slug: str
    title: str
    svg: str
    caption: str = ""


class _Panel(NamedTuple):
    slug: str
    title: str
    key: str
    y_label: str
    y_range: tuple[float, float] | None = None


_PANELS = (
    _Panel("kl-coef", "KL coefficient", "kl_coef", "coefficient"),
    _Panel("entropy", "Entropy of the policy", "entropy", "nats per token"),
    _Panel("value-loss", "Value loss", "value_loss", "squared reward"),
    _Panel("explained-variance", "Explained variance of the critic", "explained_variance", "fraction", (-1.05, 1.05)),
    _Panel("length", "Completion length", "completions/mean_length", "tokens"),
    _Panel(
        "terminated", "Completions that ended by themselves", "completions/terminated_fraction", "fraction", (0, 1.03)
    ),
    _Panel("clip-fraction", "Clipped policy ratios", "clip_fraction", "fraction of tokens"),
    _Panel("approx-kl", "Change of the policy in one rollout", "approx_kl", "nats per token"),
)


def training_plots(log_history: LogHistory, kl_target: float | None = None) -> list[Plot]:
    """Draw what was logged during training, over episodes if they were logged and over optimizer steps otherwise.

    Args:
        log_history: `trainer.state.log_history`. A plot whose keys are all missing is left out.
        kl_target: Target of the KL controller, in nats per completion.

    Returns:
        The plots for which there are data: `reward`, `kl`, `kl-coef`, `entropy`, `value-loss`, `explained-variance`,
        `length`, `terminated`, `clip-fraction`, `approx-kl`.
    """
    positions, x_label = _positions(log_history)
    plots = [_reward_plot(log_history, positions, x_label), _kl_plot(log_history, positions, x_label, kl_target)]
    plots += [_panel_plot(panel, log_history, positions, x_label) for panel in _PANELS]
    return [plot for plot in plots if plot is not None]


def histogram_plot(histograms: Mapping[str, Sequence[float]], x_label: str = "toxicity") -> Plot | None:
    """Overlay the distributions of a score, for example before and after training.

    Args:
        histograms: Scores by name. Scores that all lie in [0, 1] are binned over exactly that range.
        x_label: Name of the score.

    Returns:
        The plot, or None without data.
    """
    scores = {as_text(name): _finite_array(values) for name, values in histograms.items()}
    scores = {name: values for name, values in scores.items() if len(values)}
    if not scores:
        return None
    together = np.concatenate(list(scores.values()))
    within_unit = together.min() >= 0 and together.max() <= 1
    edges = np.histogram_bin_edges(together, bins=20, range=(0, 1) if within_unit else None)
    figure, axes = new_figure(x_label, "fraction of completions")
    for (name, values), color in zip(scores.items(), itertools.cycle((ORANGE, BLUE, GREEN, GREY)), strict=False):
        weights = np.full(len(values), 1 / len(values))
        label = plain(shorten(name, 24))
        axes.hist(values, list(edges), weights=weights, histtype="stepfilled", color=color, alpha=0.25)
        axes.hist(values, list(edges), weights=weights, histtype="step", color=color, linewidth=1.5, label=label)
    axes.set_xlim(edges[0], edges[-1])
    add_legend(axes)
    means = [f"{name}: mean {values.mean():.3g} over {len(values)} completions" for name, values in scores.items()]
    return Plot("histogram", f"Distribution of {x_label}", to_svg(figure, "histogram"), "; ".join(means) + ".")


def frontier_plot(frontier: Iterable[Sequence[float]] | None, log_history: LogHistory) -> Plot | None:
    """Draw the run's way through KL and reward against the best reward that each KL could buy.

    Args:
        frontier: (KL, reward) pairs of the optimum, in any order.
        log_history: `trainer.state.log_history`; entries with `kl` and `reward` are drawn, first to last.

    Returns:
        The plot, or None without data.
    """
    optimum = _pairs(frontier or ())
    path = _pairs((entry.get("kl"), entry.get("reward")) for entry in log_history)
    if not len(optimum) and not len(path):
        return None
    figure, axes = new_figure("KL to the reference (nats per completion)", "reward")
    if len(optimum):
        optimum = optimum[np.argsort(optimum[:, 0], kind="stable")]
        axes.plot(*optimum.T, color=GREEN, linewidth=1.5, marker="o", markersize=3, label="optimum")
    if len(path):
        _draw_path(axes, path)
    add_legend(axes)
    return Plot("frontier", "Reward bought with KL", to_svg(figure, "frontier"))


def _draw_path(axes: Axes, path: np.ndarray) -> None:
    smooth = (
        np.stack([moving_average(path[:, 0]), moving_average(path[:, 1])], axis=1) if len(path) > _MANY_POINTS else path
    )
    if smooth is not path:
        thinned = path[:: math.ceil(len(path) / _MOST_DOTS)]
        axes.scatter(thinned[:, 0], thinned[:, 1], s=4, color=BLUE, alpha=0.25, linewidths=0)
    axes.plot(*smooth.T, color=BLUE, linewidth=1.5, label="this run")
    axes.scatter(smooth[0, 0], smooth[0, 1], s=28, facecolors="none", edgecolors=BLUE, zorder=3, label="its start")
    axes.scatter(smooth[-1, 0], smooth[-1, 1], s=28, color=BLUE, zorder=3, label="its end")


def _reward_plot(log_history: LogHistory, positions: Sequence[float], x_label: str) -> Plot | None:
    x, reward = _series(log_history, positions, "reward")
    if not len(x):
        return None
    figure, axes = new_figure(x_label, "reward")
    spreads = [
        (p, finite(e.get("reward")), finite(e.get("reward_std"))) for p, e in zip(positions, log_history, strict=True)
    ]
    band = np.array([point for point in spreads if None not in point], dtype=float).reshape(-1, 3)
    if len(band) > 1:
        band_x, middle, spread = band.T
        low, high = moving_average(middle - spread), moving_average(middle + spread)
        axes.fill_between(band_x, low, high, color=BLUE, alpha=0.15, linewidth=0, label="one standard deviation")
    _line(axes, x, reward, label="mean")
    _evaluations(axes, log_history, positions, "reward")
    add_legend(axes)
    return Plot("reward", "Reward", to_svg(figure, "reward"))


def _kl_plot(log_history: LogHistory, positions: Sequence[float], x_label: str, kl_target: float | None) -> Plot | None:
    x, kl = _series(log_history, positions, "kl")
    if not len(x):
        return None
    figure, axes = new_figure(x_label, "nats per completion")
    caption = ""
    target = finite(kl_target)
    if target is not None:
        last_third = x[0] + (x[-1] - x[0]) * 2 / 3
        low, high = (1 - _KL_TOLERANCE) * target, (1 + _KL_TOLERANCE) * target
        axes.axhline(target, color=ORANGE, linewidth=1.2, linestyle="--", label="target")
        label = f"within {_KL_TOLERANCE:.0%}, last third"
        axes.fill_between([last_third, x[-1]], low, high, color=ORANGE, alpha=0.2, linewidth=0, label=label)
        late = kl[x >= last_third]
        inside = np.mean((late >= low) & (late <= high))
        caption = (
            f"Over the last third the mean KL is {late.mean():.3g} nats against a target of {target:.3g}; "
            f"{inside:.0%} of the measurements lie within {_KL_TOLERANCE:.0%} of it."
        )
    _line(axes, x, kl, label="measured")
    _evaluations(axes, log_history, positions, "kl")
    add_legend(axes)
    return Plot("kl", "KL to the reference", to_svg(figure, "kl"), caption)


def _panel_plot(panel: _Panel, log_history: LogHistory, positions: Sequence[float], x_label: str) -> Plot | None:
    x, y = _series(log_history, positions, panel.key)
    if not len(x):
        return None
    figure, axes = new_figure(x_label, panel.y_label)
    _line(axes, x, y, label="training")
    _evaluations(axes, log_history, positions, panel.key)
    if panel.y_range is not None:
        low, high = panel.y_range
        # A critic worse than -1 is off the chart; its exact badness would flatten the part that matters.
        axes.set_ylim(max(low, min(y.min(), high) - 0.05), high if y.max() <= high else None)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        add_legend(axes)
    return Plot(panel.slug, panel.title, to_svg(figure, panel.slug))


def _positions(log_history: LogHistory) -> tuple[list[float], str]:
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


def _series(log_history: LogHistory, positions: Iterable[float], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(x, finite(entry.get(key))) for x, entry in zip(positions, log_history, strict=True)]
    kept = [(x, y) for x, y in pairs if y is not None]
    return np.array([x for x, _ in kept], dtype=float), np.array([y for _, y in kept], dtype=float)


def _finite_array(values: Iterable[Any]) -> np.ndarray:
    return np.array([number for value in values if (number := finite(value)) is not None], dtype=float)


def _pairs(points: Iterable[Sequence[Any]]) -> np.ndarray:
    numbers = [(finite(kl), finite(reward)) for kl, reward in points]
    return np.array([pair for pair in numbers if None not in pair], dtype=float).reshape(-1, 2)


def moving_average(values: np.ndarray) -> np.ndarray:
    """Return the centred moving average over a twentieth of the points, shape (points,); few points stay as is."""
    if len(values) <= _MANY_POINTS:
        return values
    window = np.ones(max(3, len(values) // 20) // 2 * 2 + 1)
    # Dividing by the same sum over ones makes the window shorter at both ends, instead of pulling them to zero.
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, label: str) -> None:
    if len(x) > _MANY_POINTS:
        axes.plot(x, y, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(x, moving_average(y), color=BLUE, linewidth=1.6, label=label)
    else:
        axes.plot(x, y, color=BLUE, linewidth=1.6, marker="o", markersize=3, label=label)


def _evaluations(axes: Axes, log_history: LogHistory, positions: Sequence[float], key: str) -> None:
    x, y = _series(log_history, positions, f"eval_{key}")
    if len(x):
        axes.plot(x, y, color=GREEN, linestyle="none", marker="D", markersize=4, label="evaluation")


def new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return an empty figure in the style of the report."""
    # Figure without pyplot: no global state, so reports may be written from any thread.
    figure = Figure(figsize=(4.3, 2.8), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(plain(x_label), color=INK, fontsize=9)
    axes.set_ylabel(plain(y_label), color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8)
    for item in (axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()):
        item.set(color=INK, fontsize=8)
    for side, spine in axes.spines.items():
        spine.set(color=INK, alpha=0.5, visible=side in ("left", "bottom"))
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.margins(x=0.02)
    return figure, axes


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
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.6,
    )


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
