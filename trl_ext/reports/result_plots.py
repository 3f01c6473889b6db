# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The plots of what was measured before and after a run: distributions of a score, and reward bought with KL."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trl_ext.monitoring.metrics import finite
from trl_ext.monitoring.samples import as_text, shorten

from .drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    VIOLET,
    Plot,
    add_legend,
    new_figure,
    plain,
    series_label,
    to_svg,
    value_range,
)


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
        label = series_label(name)
        axes.hist(values, list(edges), weights=weights, histtype="stepfilled", color=color, alpha=0.25)
        axes.hist(values, list(edges), weights=weights, histtype="step", color=color, linewidth=1.5, label=label)
    axes.set_xlim(edges[0], edges[-1])
    add_legend(axes)
    means = [
        f"{shorten(name, 60)}: mean {values.mean():.3g} over {len(values)} completions"
        for name, values in scores.items()
    ]
    return Plot("histogram", f"Distribution of {x_label}", to_svg(figure, "histogram"), "; ".join(means) + ".")


def frontier_plot(
    frontier: Iterable[Sequence[float]] | None,
    measured: Sequence[Mapping[str, Any]],
    caption: str = "",
    best_of_n: Sequence[Mapping[str, Any]] = (),
) -> Plot | None:
    """Draw measured points of KL and reward against the best reward that each KL could buy.

    Args:
        frontier: (KL, reward) pairs of the optimum, in any order.
        measured: Points in the order of time, with `name`, `kl`, `reward` and, where known, the ends `low` and `high`
            of the reward's interval. One that is `apart`, such as the average of the policy, is not on their line.
        caption: Prompts and completions behind the curve and the points.
        best_of_n: Rows of `trl_ext.evaluation.best_of_n`: `n`, `kl_bound`, `reward`.

    Returns:
        The plot, or None without a measured point, whose curve alone would say nothing about the run.
    """
    points = [(point, point.get("reward"), point.get("low"), point.get("high")) for point in measured]
    figure = _draw(frontier, points, _best(best_of_n, "reward"), "reward")
    return None if figure is None else Plot("frontier", "Reward bought with KL", to_svg(figure, "frontier"), caption)


def judge_frontier_plot(
    frontier: Iterable[Sequence[float]] | None,
    measured: Sequence[Mapping[str, Any]],
    best_of_n: Sequence[Mapping[str, Any]],
    name: str,
) -> Plot | None:
    """Draw what a judge says of the same points, of the optimum and of best-of-n: its mark over the KL.

    Args:
        frontier: (KL, mark) pairs of the optimum.
        measured: As in `frontier_plot`, with `judge`, `judge_low` and `judge_high`.
        best_of_n: As in `frontier_plot`, with `judge`.
        name: Name of the mark.

    Returns:
        The plot, or None without a judged point.
    """
    points = [(p, p.get("judge"), p.get("judge_low"), p.get("judge_high")) for p in measured]
    figure = _draw(frontier, points, _best(best_of_n, "judge"), name)
    caption = (
        "The judge, which training never saw, on the same completions: where its mark gets worse while the reward "
        "rises, the reward is being exploited, by training or by choosing the best of n alone."
    )
    title = "The judge over the KL"
    return None if figure is None else Plot("judge-frontier", title, to_svg(figure, "judge-frontier"), caption)


def _draw(
    frontier: Iterable[Sequence[float]] | None,
    measured: Sequence[tuple[Mapping[str, Any], Any, Any, Any]],
    best: Sequence[tuple[float, float, int]],
    label: str,
) -> Figure | None:
    """Draw the optimum, best-of-n (KL, value, n) and measured points (point, value, low, high) over the KL."""
    known = [row for row in measured if None not in (finite(row[0].get("kl")), finite(row[1]))]
    if not known:
        return None
    optimum = _pairs(frontier or ())
    figure, axes = new_figure("KL to the reference (nats per completion)", label)
    path = np.array([(point["kl"], value) for point, value, _, _ in known], dtype=float)
    end = max(1.4 * path[:, 0].max(), 0.5)
    shown = [*path[:, 1]]
    if len(optimum):
        optimum = optimum[np.argsort(optimum[:, 0], kind="stable")]
        axes.plot(*optimum.T, color=GREEN, linewidth=1.6, label="optimum")
        shown += list(optimum[optimum[:, 0] <= end, 1])
        shown.append(float(np.interp(end, *optimum.T)))
    if best:
        kls, values, _ = zip(*best, strict=True)
        axes.plot(
            kls,
            values,
            color=ORANGE,
            linewidth=1,
            linestyle="--",
            marker="s",
            markersize=3,
            label="best of n (KL: at most)",
        )
        for kl, value, n in best:
            if kl <= end:
                shown.append(value)
                axes.annotate(str(n), (kl, value), xytext=(0, 5), textcoords="offset points", color=ORANGE, fontsize=8)
    course = np.array([not point.get("apart") for point, *_ in known])
    axes.plot(*path[course].T, color=BLUE, linewidth=1, linestyle=":", marker="o", markersize=3, label="measured")
    for (point, _, *ends), (kl, value) in zip(known, path, strict=True):
        low, high = map(finite, ends)
        if low is not None and high is not None:
            axes.plot([kl, kl], [low, high], color=VIOLET if point.get("apart") else BLUE, linewidth=1.2)
            shown += [low, high]
        if point.get("name"):
            text = plain(shorten(as_text(point["name"]), 16))
            if point.get("apart"):  # it lies near the last point, whose name it would cover
                axes.plot(kl, value, color=VIOLET, linestyle="none", marker="D", markersize=6, label=text)
                continue
            axes.plot(kl, value, color=BLUE, marker="o", markersize=6)
            place = (9, -4) if point is known[0][0] else (7, -13)  # beside the axis, below the points of evaluations
            axes.annotate(text, (kl, value), xytext=place, textcoords="offset points", color=INK, fontsize=9)
    axes.set_xlim(min(0.0, path[:, 0].min()) - 0.03 * end, end)
    axes.set_ylim(*value_range(shown))
    add_legend(axes)
    return figure


def _best(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float, int]]:
    """Return KL, value and n of the rows of best-of-n that have the value."""
    found = [(finite(row.get("kl_bound")), finite(row.get(key)), row.get("n")) for row in rows]
    return [(kl, value, int(n)) for kl, value, n in found if kl is not None and value is not None and n is not None]


def _finite_array(values: Iterable[Any]) -> np.ndarray:
    return np.array([number for value in values if (number := finite(value)) is not None], dtype=float)


def _pairs(points: Iterable[Sequence[Any]]) -> np.ndarray:
    numbers = [(finite(kl), finite(reward)) for kl, reward in points]
    return np.array([pair for pair in numbers if None not in pair], dtype=float).reshape(-1, 2)
