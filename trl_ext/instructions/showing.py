# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tables and the report at the end of the instruction recipe."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from trl_ext.evaluation.quantities import duration, has_average, quantity
from trl_ext.evaluation.reward_models import RewardModelReport
from trl_ext.messages.places import short_name
from trl_ext.reports.by_category import category_table
from trl_ext.reports.content import Report
from trl_ext.reports.runs import write_run
from trl_ext.reports.samples import sorted_samples

from .comparison import Measured

NOTE = (
    "The reward model learned from pairs ranked by the judge, some of them wrongly; PPO saw the reward model alone. "
    "The judge's gold reward is measured and never trained on."
)
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
        for name, rows in (summary.get("by_category") or {}).items():
            console.print(category_table(name, rows))
        ends = (f"{summary[f'gold_win_rate{end}']:.3f}" for end in ("", "_low", "_high"))
        console.print(
            "Gold reward {:.3f} before PPO, {:.3f} after; win rate {} [{}, {}]".format(
                summary["gold_before"], summary["gold_after"], *ends
            )
        )
    if has_average(summary):
        marks = [
            f"{quantity(name).label} {summary[f'{name}_ema']:.3f}"
            for name in ("gold", "proxy")
            if f"{name}_ema" in summary
        ]
        console.print(f"The policy average: {', '.join(marks)}, KL {summary['kl_ema']:.3g}")
    if summary.get("eta") is not None:
        console.print(f"Kept eta {summary['eta']:g}, chosen on {summary['num_choice_prompts']} other prompts.")
    if summary.get("verdict"):
        console.print(Text(str(summary["verdict"])))
    console.print(", ".join(f"{name} {duration(value)}" for name, value in summary["seconds"].items()))


def course(ppo: Mapping[str, Any]) -> dict[str, Any]:
    """Return `episodes` and `kl_last_third` of what the PPO stage left."""
    history = ppo["log_history"]
    episodes = [entry["episodes"] for entry in history if "episodes" in entry]
    kls = [entry["kl"] for entry in history if "kl" in entry]
    late = kls[-max(1, len(kls) // 3) :]
    return {"episodes": max(episodes, default=None), "kl_last_third": sum(late) / len(late) if late else None}


def report(
    path: Path,
    before: Measured,
    after: Measured,
    summary: Mapping[str, Any],
    *,
    runs: Mapping[str, Mapping[str, Any]],
    reward: Mapping[str, Any],
    model: str,
    about: Report,
    num_samples: int,
    embedded: bool,
) -> dict[str, Any]:
    """Write `report.html`, `report_data.json` and `summary.json`, and return the summary with its verdict.

    Args:
        path: Folder of the three.
        before: Measurement of the initial policy.
        after: Measurement of the trained policy.
        summary: As `comparison.summarize` returns it.
        runs: `log_history` and `alarms` of this run, and of one to compare it with, by name.
        reward: What the `reward` stage left.
        model: Name or folder of the model that the first stage started from.
        about: What `report_of` says of the trainer.
        num_samples: Completions to show.
        embedded: Whether the goals of the embedded example apply.
    """
    marks = (before.gold or before.proxy, after.gold or after.proxy)
    (name, run), *others = runs.items()
    samples = sorted_samples(before.samples, after.samples, *marks, num_samples, "higher")
    content = replace(
        about,
        origin={**(about.origin or {}), "model": short_name(model)},
        summary=summary,
        thresholds=GOALS if embedded else None,
        log_history=run["log_history"],
        samples=samples.samples,
        sample_counts=samples.counts,
        histograms={"before": marks[0], "after": marks[1]},
        notes=NOTE if embedded else None,
        signed=("proxy", "gold"),  # they may be 0 on average before PPO
        score_name="gold reward" if before.gold is not None else "proxy reward",
        score_better="higher",
        name=name,
        step=max((entry["step"] for entry in run["log_history"] if "step" in entry), default=None),
        other_runs={other: result["log_history"] for other, result in others},
        alarms={run: result["alarms"] for run, result in runs.items()},
        reward_model=reward if "accuracy" in reward else None,
    )
    return write_run(path, content)
