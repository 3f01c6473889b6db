# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What the critic explains at each position of a completion, before PPO and at the evaluations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_ext.evaluation.quantities import number_text
from trl_ext.monitoring.glossary import find
from trl_ext.monitoring.metrics import finite

if TYPE_CHECKING:
    from .drawing import LogHistory, Plot

__all__ = ["PRETRAINING_FILE", "explained_by_position_plot", "read_pretraining"]

PRETRAINING_FILE = "critic_pretraining.json"
_RANGE = re.compile(r"eval_explained_variance/to_token_(\d+)")
_LEAST = -1.05  # a critic worse than that is off the chart


def read_pretraining(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the report of the critic's pretraining in the folder of a run; None where there is none to read.

    Args:
        folder: Output directory of the run.
        config: Its settings; without `critic_pretraining_episodes` a file there is of an earlier run.
    """
    if not config.get("critic_pretraining_episodes"):
        return None
    try:
        content = json.loads((folder / PRETRAINING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("by_position"), list) else None


def explained_by_position_plot(pretraining: Mapping[str, Any] | None, history: LogHistory) -> Plot | None:
    """Draw the explained variance over the position in the completion.

    Args:
        pretraining: As `read_pretraining` returned it.
        history: The log of the run, whose evaluations have `eval_explained_variance/to_token_*`.

    Returns:
        The plot, or None without any.
    """
    before = [finite(value) for value in (pretraining or {}).get("by_position", [])]
    known = [(i, value) for i, value in enumerate(before, start=1) if value is not None]
    evaluations = [found for entry in history if (found := _ranges(entry))]
    if not known and not evaluations:
        return None
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    from .drawing import BLUE, GREEN, GREY, Plot, add_legend, new_figure, to_svg

    figure, axes = new_figure("token of the completion", "fraction")
    drawn, captions = [0.0], []
    if known:
        x, y = np.array(known, dtype=float).T
        axes.plot(x, y, color=BLUE, linewidth=1.6, marker="o", markersize=3, label="before PPO, held out")
        drawn += list(y)
        whole = number_text(finite((pretraining or {}).get("explained_variance")))
        captions.append(
            f"Before PPO, on completions of held-out prompts: {whole} over all tokens, {number_text(float(y[0]))} at "
            f"token {x[0]:.0f}, {number_text(float(y[-1]))} at token {x[-1]:.0f}"
        )
    if evaluations:
        last = evaluations[-1]
        for end, value in last.items():
            label = "last evaluation" if end == min(last) else None
            axes.plot([end // 2 + 0.6, end + 0.4], [value, value], color=GREEN, linewidth=2.4, label=label)
        drawn += list(last.values())
        ends = [min(last), max(last)]
        captions.append(
            f"At the last evaluation, on evaluation prompts: {number_text(last[ends[0]])} at token {ends[0]}, "
            f"{number_text(last[ends[1]])} at tokens {ends[1] // 2 + 1} to {ends[1]}"
        )
        right = max([end for end, _ in known], default=max(last))
        axes.set_xlim(0.4, max(right, max(last) // 2 + 1) + 0.6)
    axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
    axes.set_ylim(max(_LEAST, min(drawn) - 0.05), max(1.05, min(max(drawn), 1.05)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    add_legend(axes)
    metric = find("eval_explained_variance/to_token_1")
    slug = "explained-variance-by-position"
    title = "Explained variance by position"
    return Plot(slug, title, to_svg(figure, slug), f"{'. '.join(captions)}.", "" if metric is None else metric.healthy)


def _ranges(entry: Mapping[str, Any]) -> dict[int, float]:
    """Return the explained variances of an evaluation by the last token of their range, in order."""
    found = {int(match[1]): finite(value) for key, value in entry.items() if (match := _RANGE.fullmatch(key))}
    return {end: value for end, value in sorted(found.items()) if value is not None}
