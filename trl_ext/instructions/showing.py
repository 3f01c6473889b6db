# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tables and the report at the end of the instruction recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_ext.evaluation.reward_models import RewardModelReport
from trl_ext.messages.printable import one_line
from trl_ext.monitoring.reward_hacking import Alarm
from trl_ext.reports.hacking_plots import overoptimization_plot
from trl_ext.reports.report import paired_samples, write_report
from trl_ext.reports.reward_model import reward_model_plots

from .comparison import Measured

GOALS = {"gold_win_rate": (">=", 0.65), "gold_win_rate_low": (">=", 0.55), "reward_model_accuracy": (">=", 0.8)}


def print_reward(result: Mapping[str, Any]) -> None:
    """Print one line about the reward model, if the stage measured it."""
    if "accuracy" not in result:
        return
    report = RewardModelReport.from_dict(result)
    rate = report.accuracy
    print(
        f"Reward model: accuracy {rate.estimate:.3f} [{rate.low:.3f}, {rate.high:.3f}] on {report.pairs} held-out "
        f"pairs, calibration error {report.ece:.3f}, correlation with length {report.length_correlation:.2f}"
    )


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the comparison, by kind of prompt where there are kinds."""
    console = console or Console()
    if summary["gold_win_rate"] is not None:
        table = Table("kind", "before", "after", "win rate", "prompts", title="Gold reward before and after PPO")
        for kind, row in summary.get("by_kind", {}).items():
            numbers = (f"{row[key]:.2f}" for key in ("before", "after", "win_rate"))
            table.add_row(Text(one_line(kind.replace("_", " "))), *numbers, str(row["prompts"]))
        interval = (
            f"{summary['gold_win_rate']:.3f} [{summary['gold_win_rate_low']:.3f}, {summary['gold_win_rate_high']:.3f}]"
        )
        table.add_section()
        before, after = f"{summary['gold_before']:.3f}", f"{summary['gold_after']:.3f}"
        table.add_row("all", before, after, interval, str(summary["num_eval_prompts"]))
        console.print(table)
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items())
    console.print(f"KL {summary['kl']:.2f} nats per completion; seconds: {seconds}")


def report(
    path: Path,
    before: Measured,
    after: Measured,
    summary: Mapping[str, Any],
    *,
    runs: Mapping[str, Mapping[str, Any]],
    reward: Mapping[str, Any],
    config: Mapping[str, Any],
    kl_target: float | None,
    num_samples: int,
    embedded: bool,
) -> None:
    """Write `report.html`.

    Args:
        runs: `log_history` and `alarms` of this run, and of one to compare it with, by name.
        reward: What the `reward` stage left.
        num_samples: Completions to show.
        embedded: Whether the goals of the embedded example apply.
    """
    marks = (before.gold or before.proxy, after.gold or after.proxy)
    flat = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    name = "gold reward" if before.gold is not None else "proxy reward"
    histories = {run: result["log_history"] for run, result in runs.items()}
    alarms = {run: [Alarm(**alarm) for alarm in result["alarms"]] for run, result in runs.items()}
    about_reward = reward_model_plots(RewardModelReport.from_dict(reward)) if "accuracy" in reward else []
    write_report(
        path,
        title="Instruction following",
        log_history=next(iter(histories.values())),
        summary=flat,
        samples=paired_samples(before.samples, after.samples, *marks, num_samples),
        histograms={"before": marks[0], "after": marks[1]},
        kl_target=kl_target,
        config=config,
        notes="The reward model learned from pairs ranked by the judge, some of them wrongly; PPO saw the reward model "
        "alone. The judge's gold reward is measured and never trained on."
        if embedded
        else None,
        thresholds=GOALS if embedded else None,
        signed=("proxy",),  # it is 0 on average before PPO
        score_name=name,
        extra_plots=[overoptimization_plot(histories, alarms), *about_reward],
    )
