# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Several runs on one page: their verdicts, their numbers, and their curves on the same axes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_ext.evaluation.quantities import compared, interval_text, quantity, value_text
from trl_ext.files import write_text

from .content import Report
from .markup import escape, prose, section, table
from .report import figures
from .style import PAGE, STYLE
from .verdict import verdict

__all__ = ["write_comparison"]

_ONE_NUMBER = ("kl", "kl_target", "kl_last_third", "episodes", "train_seconds", "gold_win_rate")


def write_comparison(path: Path, runs: Mapping[str, Report]) -> Path:
    """Write the page of several runs, whole or not at all, and return its path.

    Args:
        path: The HTML file.
        runs: Reports by the names under which they are shown.
    """
    # matplotlib takes a second to import.
    from .plots import training_plots

    targets = {report.kl_target for report in runs.values()}
    target = targets.pop() if len(targets) == 1 else None
    plots = training_plots({name: report.log_history for name, report in runs.items()}, target)
    verdicts = "".join(f"<h3>{escape(name)}</h3><p>{prose(verdict(report))}</p>" for name, report in runs.items())
    parts = [
        section("results", "Results", verdicts + _numbers(runs)),
        section("curves", "Training", figures(plots, "plots")),
        section("settings", "Settings that differ between the runs", _settings(runs)),
    ]
    title = escape("Comparison of " + ", ".join(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, PAGE.format(title=title, style=STYLE, body="\n".join(part for part in parts if part)))
    return path


def _numbers(runs: Mapping[str, Report]) -> str:
    summaries = {name: report.summary or {} for name, report in runs.items()}
    rows = []
    names = dict.fromkeys(name for summary in summaries.values() for name in compared(summary))
    for key in [*(f"{name}_{time}" for name in names for time in ("before", "after")), *_ONE_NUMBER]:
        if any(summary.get(key) is not None for summary in summaries.values()):
            cells = "".join(f"<td>{_value(key, summary)}</td>" for summary in summaries.values())
            time = next((f" {time}" for time in ("before", "after") if key.endswith(f"_{time}")), "")
            rows.append(f"<tr><td>{escape(quantity(key).label)}{time}</td>{cells}</tr>")
    return table("<th></th>" + "".join(f"<th>{escape(name)}</th>" for name in runs), rows)


def _value(key: str, summary: Mapping[str, Any]) -> str:
    name, _, time = key.rpartition("_")
    interval = interval_text(key, summary.get(f"{name}_ci95_{time}"))
    small = f' <span class="unit">({escape(interval)})</span>' if interval else ""
    return escape(value_text(key, summary.get(key))) + small


def _settings(runs: Mapping[str, Report]) -> str:
    configs = [report.config or {} for report in runs.values()]
    rows = []
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config.get(key, "–") for config in configs]
        if key != "output_dir" and any(value != values[0] for value in values):
            rows.append(f"<tr><td>{escape(key)}</td>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>")
    return table("<th></th>" + "".join(f"<th>{escape(name)}</th>" for name in runs), rows, "texts")
