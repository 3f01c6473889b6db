# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The plot of over-optimization: proxy and gold reward over the distance from the reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from trl_ext.monitoring.metrics import finite

from .drawing import (
    BLUE,
    INK,
    ORANGE,
    LogHistory,
    Plot,
    add_legend,
    moving_average,
    new_figure,
    series_label,
    style_axis,
    to_svg,
)


def overoptimization_plot(
    runs: Mapping[str, LogHistory], alarms: Mapping[str, Iterable[Any]] | None = None
) -> Plot | None:
    """Draw proxy and gold reward over sqrt(KL), as Gao et al. (2023, arXiv 2210.10760) do, for one or two runs.

    Evaluations are drawn where there are at least three, and what was logged in training otherwise. Gold has the axis
    on the left and the proxy the one on the right: their units differ.

    Args:
        runs: `trainer.state.log_history` by name, with `kl`, `reward` and `monitor/gold`.
        alarms: The alarms of a run's `RewardHackingMonitor`; the first one is marked.

    Returns:
        The plot, or None without data.

    Raises:
        ValueError: more than two runs, which nobody could tell apart.
    """
    if len(runs) > 2:
        raise ValueError(f"overoptimization_plot got {len(runs)} runs; it draws one or two.")
    paths = {name: path for name, history in runs.items() if len(path := hacking_path(history))}
    if not paths:
        return None
    figure, left = new_figure("distance from the reference, sqrt(KL in nats)", "gold reward")
    right = _right_axis(left)
    sentences = []
    for (name, path), color in zip(paths.items(), itertools.cycle((BLUE, ORANGE)), strict=False):
        _, distance, proxy, gold = (moving_average(column) for column in path.T)
        left.plot(distance, gold, color=color, linewidth=1.6, label=series_label(name))
        right.plot(distance, proxy, color=color, linewidth=1.4, linestyle="--")
        first = min(((alarm.step, alarm.signal) for alarm in (alarms or {}).get(name, ())), default=None)
        if first is not None:
            _mark(left, path, first[0], color)
        sentences.append(_sentence(name, path, first))
    left.plot([], [], color=INK, linewidth=1.6, label="gold (left axis)")
    left.plot([], [], color=INK, linewidth=1.4, linestyle="--", label="proxy (right axis)")
    add_legend(left)
    return Plot("overoptimization", "Proxy and gold reward", to_svg(figure, "overoptimization"), " ".join(sentences))


def hacking_path(log_history: LogHistory) -> np.ndarray:
    """Return step, sqrt(KL), proxy and gold of the evaluations, or of training if there are fewer than three."""
    for prefix in ("eval_", ""):
        keys = ("step", f"{prefix}kl", f"{prefix}reward", f"{prefix}monitor/gold")
        rows = [[finite(entry.get(key)) for key in keys] for entry in log_history]
        path = np.array([row for row in rows if None not in row], dtype=float).reshape(-1, 4)
        if prefix == "" or len(path) >= 3:
            break
    path[:, 1] = np.sqrt(np.maximum(path[:, 1], 0))  # the estimate of a KL near 0 can be negative
    return path


def _right_axis(left: Axes) -> Axes:
    right = left.twinx()
    right.set_ylabel("proxy reward", color=INK, fontsize=10)
    style_axis(right, ("right",))
    return right


def _mark(axes: Axes, path: np.ndarray, step: int, color: str) -> None:
    at = float(np.interp(step, path[:, 0], path[:, 1]))
    axes.add_line(Line2D([at, at], [0, 1], transform=axes.get_xaxis_transform(), color=color, linestyle=":"))


def _sentence(name: str, path: np.ndarray, alarm: tuple[int, str] | None) -> str:
    start, best, end = path[0, 3], path[:, 3].max(), path[-1, 3]
    text = (
        f"{name}: proxy from {path[0, 2]:.3g} to {path[-1, 2]:.3g}, gold from {start:.3g} to {end:.3g}, "
        f"{best:.3g} at its best"
    )
    gain = best - start
    if gain > 0 and math.isfinite(gain):
        text += f", {(best - end) / gain:.0%} of its gain lost at the end"
    return text + (f"; first alarm '{alarm[1]}' at step {alarm[0]}." if alarm else ".")
