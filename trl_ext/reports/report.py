# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The report of a run as one HTML file without scripts or outside resources."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_ext.files import write_text

from .content import Report
from .interpolation import interpolation_plot
from .markup import escape, prose, section
from .run_section import run_section
from .samples import samples_section
from .style import PAGE, STYLE
from .tiles import numbers_table, tiles
from .verdict import verdict

if TYPE_CHECKING:
    from .drawing import Plot

__all__ = ["figures", "plots_of", "write_page", "write_report"]

# Plots of the state of policy and critic; the others show what the run achieved.
_TRAINING = (
    *("kl-coef", "length", "entropy", "terminated", "explained-variance", "explained-variance-held-out"),
    *("explained-variance-by-position", "value-loss", "clip-fraction", "approx-kl"),
    *("skipped", "grad-norm", "learning-rate", "memory", "speed", "time"),
)


def write_report(
    path: str | os.PathLike, *, title: str, extra_plots: Sequence[Plot | None] = (), **content: Any
) -> Path:
    """Write the page of a run.

    Args:
        path: The HTML file, written whole or not at all.
        title: Heading of the page.
        extra_plots: Further plots, drawn first.
        content: Any of the other attributes of `trl_ext.reports.Report`, such as `log_history` and `summary`.

    Returns:
        The path of the report.

    Raises:
        TypeError: If `Report` has no attribute of a name.
        ValueError: If the relation of a threshold is neither `<=` nor `>=`.
    """
    return write_page(Path(path), Report(title, **content), extra_plots)


def write_page(path: Path, report: Report, extra_plots: Sequence[Plot | None] = ()) -> Path:
    """Write a report as HTML, whole or not at all, and return its path."""
    report = report.cleaned(path.parent)
    extra = [plot for plot in extra_plots if plot is not None]
    drawn = [*extra, *(plot for plot in plots_of(report) if plot.slug not in {own.slug for own in extra})]
    results = [plot for plot in drawn if plot.slug not in _TRAINING]
    training = [plot for plot in drawn if plot.slug in _TRAINING]
    sentences = verdict(report)
    notes = [report.notes] if isinstance(report.notes, str) else report.notes or ()
    parts = {
        "results": ("Results", tiles(report) + numbers_table(report)),
        "curves": ("What was learned", figures(results, "plots large")),
        "samples": (
            "Samples",
            samples_section(report.samples, report.sample_counts, report.score_better, report.score_name),
        ),
        "training": ("Policy and critic while they learned", figures(training, "plots")),
        "run": ("This run", run_section(report)),
    }
    parts = {slug: part for slug, part in parts.items() if part[1]}
    links = "".join(f'<a href="#{slug}">{heading}</a>' for slug, (heading, _) in parts.items())
    body = [
        f'<p class="lead" dir="auto">{prose(sentences)}</p>' if sentences else "",
        *(f'<p class="note" dir="auto">{prose(paragraph)}</p>' for paragraph in notes),
        f"<nav>{links}</nav>" if len(parts) > 1 else "",
        *(section(slug, heading, part) for slug, (heading, part) in parts.items()),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, PAGE.format(title=escape(report.title), style=STYLE, body="\n".join(filter(None, body))))
    return path


def plots_of(report: Report) -> list[Plot]:
    """Return every plot for which a report has data, in the order of the page."""
    # matplotlib takes a second to import, and only the end of a run needs it.
    from . import plots, result_plots
    from .constraint_plots import constraint_plots
    from .critic_plots import explained_by_position_plot

    config, origin = report.config or {}, report.origin or {}
    weights = dict(zip(origin.get("rewards") or (), origin.get("reward_weights") or (), strict=False))
    steps = int(config.get("num_ppo_epochs") or 1) * int(config.get("num_mini_batches") or 1)
    drawn = plots.training_plots(report.log_history, report.kl_target, weights, steps)
    found: list[Plot | None] = [plot for plot in drawn if plot.slug not in _TRAINING]
    found += constraint_plots(report.log_history)
    found += _hacking_plots(report)
    best = report.best_of_n
    found.append(result_plots.frontier_plot(report.frontier, report.measured, report.frontier_caption, best))
    found.append(result_plots.judge_frontier_plot(report.judge_frontier, report.measured, best, report.judge_name))
    found.append(interpolation_plot(report.interpolation))
    found.append(result_plots.histogram_plot(report.histograms or {}, report.score_name))
    training: list[Plot | None] = [plot for plot in drawn if plot.slug in _TRAINING]
    critic = next((i for i, plot in enumerate(training) if plot is not None and plot.slug == "value-loss"), 0)
    training.insert(critic, explained_by_position_plot(report.critic_pretraining, report.log_history))
    found += training
    return [plot for plot in found if plot is not None]


def _hacking_plots(report: Report) -> list[Plot | None]:
    from trl_ext.evaluation.reward_models import RewardModelReport
    from trl_ext.monitoring.reward_hacking import Alarm

    from .hacking_plots import overoptimization_plot
    from .reward_model import reward_model_plots

    runs = {report.name: report.log_history, **(report.other_runs or {})}
    alarms = {name: [Alarm(**alarm) for alarm in found] for name, found in (report.alarms or {}).items()}
    found: list[Plot | None] = [overoptimization_plot(runs, alarms) if len(runs) <= 2 else None]
    if report.reward_model and "accuracy" in report.reward_model:
        found += reward_model_plots(RewardModelReport.from_dict(report.reward_model))
    return found


def figures(plots: Sequence[Plot], kind: str) -> str:
    """Return plots as HTML, each with what it shows and what is healthy, empty without any.

    Args:
        plots: The plots.
        kind: Class of the grid that they stand in.
    """
    cells = []
    for plot in plots:
        label = escape(f"{plot.title}. {plot.caption}")
        drawing = plot.svg.replace("<svg", f'<svg role="img" aria-label="{label}" ', 1)
        lines = [f"<p>{prose(plot.caption)}</p>"] if plot.caption else []
        lines += [f"<p><b>Healthy:</b> {prose(plot.healthy)}</p>"] if plot.healthy else []
        caption = f"<figcaption>{''.join(lines)}</figcaption>" if lines else ""
        cells.append(f'<figure id="plot-{plot.slug}"><h3>{escape(plot.title)}</h3>\n{drawing}\n{caption}</figure>')
    return f'<div class="{kind}">{"".join(cells)}</div>' if cells else ""
