# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The reward model's plots in the report: is its confidence right, and how sure is it?"""

from collections.abc import Mapping
from typing import Any

from trl_ext.monitoring.plots import BLUE, GREY, Plot, new_figure, to_svg


def reward_plots(result: Mapping[str, Any]) -> list[Plot]:
    """The reliability diagram and the margins, where the reward model was measured (`describe_rewards`)."""
    if not result.get("pairs"):
        return []
    return [_reliability(result), _margins(result)]


def _reliability(result: Mapping[str, Any]) -> Plot:
    figure, axes = new_figure("predicted probability of its choice", "how often it is right")
    predicted, observed, pairs = zip(*result["reliability"], strict=True)
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1.2, linestyle="--")
    axes.plot(predicted, observed, color=BLUE, linewidth=1.2)
    axes.scatter(predicted, observed, s=[10 + 120 * n / sum(pairs) for n in pairs], color=BLUE)
    axes.set_ylim(min(0.45, *observed), 1.03)
    caption = (
        f"Accuracy {result['accuracy']:.1%} ({result['accuracy_low']:.1%} to {result['accuracy_high']:.1%}) on "
        f"{result['pairs']} held-out pairs; expected calibration error {result['ece']:.3f}."
    )
    return Plot("reliability", "Reward model: calibration", to_svg(figure, "reliability"), caption)


def _margins(result: Mapping[str, Any]) -> Plot:
    figure, axes = new_figure("reward of the better side minus that of the worse", "pairs")
    axes.hist(result["margins"], bins=30, color=BLUE, alpha=0.4)
    axes.axvline(0, color=GREY, linewidth=1.2, linestyle="--")
    correlation = result["length_correlation"]
    caption = f"Mean {result['margin_mean']:.3g}."
    if correlation is not None:
        caption += f" Correlation of reward and length: {correlation:.2f}."
    return Plot("margins", "Reward model: margins on held-out pairs", to_svg(figure, "margins"), caption)
