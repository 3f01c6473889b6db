# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The plots of constrained rewards: how far each is out of its bound, and its multiplier."""

from __future__ import annotations

import itertools
import re

import numpy as np

from trl_ext.evaluation.quantities import number_text
from trl_ext.monitoring.glossary import find

from .drawing import (
    DASHES,
    GREY,
    SERIES,
    LogHistory,
    Plot,
    add_legend,
    count_axis,
    draw_line,
    new_figure,
    positions,
    series,
    series_label,
    to_svg,
    value_range,
)

_NAME = re.compile(r"constraints/(.+)/multiplier")


def constraint_plots(history: LogHistory) -> list[Plot]:
    """Return the plots `violations` and `multipliers` of one run; none without constraints."""
    names = list(dict.fromkeys(match[1] for entry in history for key in entry if (match := _NAME.fullmatch(key))))
    found = [_plot(history, names, "violation", "How far rewards are out of their bounds")]
    found += [_plot(history, names, "multiplier", "Multipliers of the bounds")]
    return [plot for plot in found if plot is not None]


def _plot(history: LogHistory, names: list[str], quantity: str, title: str) -> Plot | None:
    at, x_label = positions(history)
    lines = {name: series(history, at, f"constraints/{name}/{quantity}") for name in names}
    lines = {name: (x, y) for name, (x, y) in lines.items() if len(x)}
    if not lines:
        return None
    metric = find(f"constraints/{next(iter(lines))}/{quantity}")
    figure, axes = new_figure(x_label, "" if metric is None else metric.unit)
    captions = []
    for (name, (x, y)), color, style in zip(
        lines.items(), itertools.cycle(SERIES), itertools.cycle(DASHES), strict=False
    ):
        draw_line(axes, x, y, series_label(name), color, style)
        late = float(y[x >= x[0] + (x[-1] - x[0]) * 2 / 3].mean())
        captions.append(f"{name}: {number_text(late)} on average over the last third")
    if quantity == "violation":
        axes.axhline(0, color=GREY, linewidth=1.2, linestyle="--", label="bound")
    drawn = np.concatenate([y for _, y in lines.values()])
    if quantity == "violation":
        axes.set_ylim(*value_range([*drawn, 0.0]))  # with room for the bound on either side
    else:
        axes.set_ylim(*value_range(drawn, zero=True))
    count_axis(axes, max(x[-1] for x, _ in lines.values()))
    add_legend(axes)
    slug = f"{quantity}s"
    return Plot(slug, title, to_svg(figure, slug), f"{'; '.join(captions)}.", "" if metric is None else metric.healthy)
