# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Summary and report of a detoxification."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_ext.evaluation.detoxification import Measured, goals
from trl_ext.evaluation.frontier import MIN_ESS, kl_at_reward, optimal_frontier
from trl_ext.trainer import PPOTrainer

from .report import paired_samples, write_report

__all__ = ["report", "summarize"]


def summarize(trainer: PPOTrainer, before: Measured, after: Measured, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the content of `summary.json`.

    Args:
        trainer: The trainer, after training.
        before: Measurement of the initial policy.
        after: Measurement of the trained policy.
        seconds: Duration of each phase.
    """
    summary: dict[str, Any] = {}
    for key in before.numbers:
        summary |= {f"{key}_before": before.numbers[key], f"{key}_after": after.numbers[key]}
    rollouts = -(-trainer.state.global_step // trainer.args.steps_per_rollout)
    trained_kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    last_third = trained_kl[-max(1, len(trained_kl) // 3) :]
    has_frontier = before.rewards.numel() > 0
    return summary | {
        "kl": after.kl,
        "kl_at_optimum": kl_at_reward(before.rewards, float(after.rewards.mean())) if has_frontier else None,
        "kl_target": trainer.args.kl_target,
        "kl_last_third": sum(last_third) / len(last_third) if last_third else None,
        "kl_coef": trainer.kl_controller.coef,
        "reward_before": float(before.rewards.mean()) if has_frontier else None,
        "reward_after": float(after.rewards.mean()) if has_frontier else None,
        "episodes": rollouts * trainer.args.batch_size,
        "num_eval_prompts": len(before.scores),
        "seconds": sum(seconds.values()),
        "seconds_by_phase": dict(seconds),
    }


def report(
    path: Path,
    trainer: PPOTrainer,
    before: Measured,
    after: Measured,
    summary: Mapping[str, Any],
    options: Mapping[str, Any],
    num_samples: int,
) -> None:
    """Write `report.html`.

    Args:
        path: The file.
        trainer: The trainer, after training.
        before: Measurement of the initial policy.
        after: Measurement of the trained policy.
        summary: As `summarize` returns it.
        options: The recipe's options, `judge_model` and `toxicity_model` among them.
        num_samples: Completions shown side by side.
    """
    frontier = optimal_frontier(before.rewards) if before.rewards.numel() else []
    write_report(
        path,
        title="Detoxification",
        log_history=trainer.state.log_history,
        summary={key: value for key, value in summary.items() if isinstance(value, int | float)},
        samples=paired_samples(before.samples, after.samples, before.scores, after.scores, num_samples),
        histograms={"before": before.scores, "after": after.scores},
        kl_target=trainer.args.kl_target,
        frontier=[(point.kl, point.reward) for point in frontier if point.ess >= MIN_ESS] if frontier else None,
        config={**options, **trainer.args.to_dict()},
        notes=f"Toxicity is the fraction of completions that {options['judge_model']} calls toxic; the reward came "
        f"from {options['toxicity_model']}.",
        thresholds=goals(summary),
    )
