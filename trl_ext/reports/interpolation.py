# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The frontier that `trl_ext interpolate` measured, in a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_ext.monitoring.metrics import finite

if TYPE_CHECKING:
    from .drawing import Plot

__all__ = ["PATH_FILE", "interpolation_plot", "read_interpolation"]

PATH_FILE = "interpolation.json"


def read_interpolation(folder: Path) -> dict[str, Any] | None:
    """Return the measurements in the folder of a run; None where there are none that can be read."""
    try:
        content = json.loads((folder / PATH_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("points"), list) else None


def interpolation_plot(measured: Mapping[str, Any] | None) -> Plot | None:
    """Draw reward over KL at each eta, with the 95% interval of the reward and the optimum.

    Args:
        measured: As `read_interpolation` returned it.

    Returns:
        The plot, or None with fewer than two points that have both.
    """
    points = [
        point
        for point in (measured or {}).get("points", [])
        if None not in [finite(point.get(name)) for name in ("eta", "kl", "reward")]
    ]
    if measured is None or len(points) < 2:
        return None
    import numpy as np

    from .drawing import BLUE, GREEN, INK, Plot, add_legend, new_figure, to_svg, value_range

    figure, axes = new_figure("KL to the reference (nats per completion)", "reward")
    path = np.array([(point["kl"], point["reward"]) for point in points], dtype=float)
    end, shown = max(1.15 * path[:, 0].max(), 0.1), [*path[:, 1]]
    optimum = np.array(sorted(measured.get("optimum") or []), dtype=float).reshape(-1, 2)
    if len(optimum):
        axes.plot(*optimum.T, color=GREEN, linewidth=1.6, label="optimum")
        shown += [*optimum[optimum[:, 0] <= end, 1], float(np.interp(end, *optimum.T))]
    axes.plot(*path.T, color=BLUE, linewidth=1.2, marker="o", markersize=5, label="interpolated")
    for point in points:
        low, high = map(finite, point.get("reward_ci95") or (None, None))
        if low is not None and high is not None:
            axes.plot([point["kl"]] * 2, [low, high], color=BLUE, linewidth=1.2, alpha=0.5)
            shown += [low, high]
        place, name = (point["kl"], point["reward"]), f"{point['eta']:g}"
        axes.annotate(name, place, xytext=(6, -12), textcoords="offset points", color=INK, fontsize=9)
    axes.set_xlim(min(0.0, path[:, 0].min()) - 0.03 * end, end)
    axes.set_ylim(*value_range(shown))
    add_legend(axes)
    caption = (
        "The weights between those of the reference (0) and of the trained policy (1), at each eta: one run gives a "
        "whole frontier. The lines are 95% intervals over prompts."
    )
    return Plot("interpolation", "Interpolated weights", to_svg(figure, "interpolation"), caption)
