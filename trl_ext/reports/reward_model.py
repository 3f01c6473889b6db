# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Plots of a reward model's calibration and margins."""

from trl_ext.evaluation.reward_models import RewardModelReport

from .drawing import BLUE, GREEN, GREY, Plot, add_legend, new_figure, to_svg


def reward_model_plots(report: RewardModelReport) -> list[Plot]:
    """Return the reliability diagram and the histogram of margins, for `write_report(extra_plots=...)`."""
    figure, axes = new_figure("confidence", "accuracy")
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1.2, label="calibrated")
    points = [(one.confidence, one.accuracy) for one in report.reliability]
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o", markersize=4, linewidth=1.4, label="this model")
    add_legend(axes)
    rate = report.accuracy
    caption = f"Accuracy {rate.estimate:.1%} [{rate.low:.1%}, {rate.high:.1%}], calibration error {report.ece:.3f}."
    reliability = Plot("reliability", "Calibration of the reward model", to_svg(figure, "reliability"), caption)
    figure, axes = new_figure("score of the chosen minus score of the rejected answer", "pairs")
    axes.stairs(report.margin_counts, report.margin_edges, color=GREEN, fill=True, alpha=0.4)
    axes.axvline(0, color=GREY, linewidth=1.2, linestyle="--")
    caption = f"Mean {report.margin_mean:.3g}, standard deviation {report.margin_std:.3g}."
    return [reliability, Plot("margins", "Margins of the reward model", to_svg(figure, "margins"), caption)]
