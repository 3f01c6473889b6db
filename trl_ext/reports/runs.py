# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Summary and report of any run of `PPOTrainer`, in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_ext.evaluation.intervals import bootstrap_mean
from trl_ext.evaluation.scored import Scored
from trl_ext.trainer import PPOTrainer

from .report import paired_samples, write_report
from .summary import write_summary

__all__ = ["report_run", "summary_of"]


def report_run(
    trainer: PPOTrainer,
    before: Scored | None = None,
    after: Scored | None = None,
    *,
    title: str = "PPO",
    seconds: Mapping[str, float] | None = None,
    options: Sequence[Any] = (),
    num_samples: int = 24,
    output_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Write `report.html` and `summary.json` of a run, on the main process alone.

    Args:
        trainer: The trainer, after training.
        before: The initial policy, as `score_policy` measured it; None where it was not measured.
        after: The trained policy on the same prompts.
        title: Heading of the page.
        seconds: Duration of each phase of the script; by default what the Trainer measured.
        options: Dataclasses of the script's own options and of the model's (`ModelConfig`), for the configuration.
        num_samples: Most completions to show.
        output_dir: Folder of the files; by default `trainer.args.output_dir`.

    Returns:
        The content of `summary.json`.
    """
    summary = summary_of(trainer, before, after, seconds or {})
    if not trainer.is_world_process_zero():
        return summary
    folder = Path(output_dir or trainer.args.output_dir)
    pairs = [] if before is None or after is None else _pairs(before, after, num_samples)
    write_report(
        folder / "report.html",
        title=title,
        log_history=trainer.state.log_history,
        summary={key: value for key, value in summary.items() if isinstance(value, int | float)},
        samples=pairs,
        kl_target=trainer.args.kl_target,
        config=trainer.args.to_dict(),
        signed=("reward", *(f"rewards/{name}" for name in trainer.rewards.names)),
        score_name="reward",
    )
    write_summary(folder / "summary.json", summary)
    return summary


def summary_of(
    trainer: PPOTrainer, before: Scored | None, after: Scored | None, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return the content of `summary.json`.

    Args:
        trainer: The trainer, after training.
        before: The initial policy.
        after: The trained policy.
        seconds: Duration of each phase.
    """
    summary: dict[str, Any] = {}
    for time, scored in (("before", before), ("after", after)):
        if scored is None:
            continue
        means = {"reward": scored.totals} | {f"rewards/{name}": values for name, values in scored.rewards.items()}
        means["mean_length"] = [float(length) for length in scored.samples.lengths]
        for name, values in means.items():
            known = [value for value in values if value is not None]
            if known:
                interval = bootstrap_mean(known, seed=trainer.args.seed)
                summary[f"{name}_{time}"] = interval.estimate
                summary[f"{name}_ci95_{time}"] = [interval.low, interval.high]
        summary[f"empty_fraction_{time}"] = sum(scored.samples.empty) / len(scored.samples.empty)
        summary["num_eval_prompts"] = len(scored.totals)
    rollouts = -(-trainer.state.global_step // trainer.args.steps_per_rollout)
    return summary | {
        "kl": None if after is None else after.kl,
        "kl_target": trainer.args.kl_target,
        "kl_coef": trainer.kl_controller.coef,
        "episodes": rollouts * trainer.args.batch_size,
        "seconds": sum(seconds.values()),
        "seconds_by_phase": dict(seconds),
    }


def _pairs(before: Scored, after: Scored, limit: int) -> list[dict[str, Any]]:
    return paired_samples(before.samples, after.samples, before.totals, after.totals, limit)  # type: ignore[arg-type]
