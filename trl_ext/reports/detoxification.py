# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Summary and report of a detoxification."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_ext.evaluation.best_of_n import best_of_n
from trl_ext.evaluation.detoxification import Measured, goals
from trl_ext.evaluation.frontier import MIN_ESS, describe_frontier, kl_at_reward
from trl_ext.evaluation.intervals import bootstrap_mean
from trl_ext.evaluation.quantities import AVERAGE_NAME
from trl_ext.evaluation.toxicity import THRESHOLD
from trl_ext.messages.places import short_name
from trl_ext.trainer import PPOTrainer

from .by_category import category_summary
from .content import Report
from .runs import cost_of, evaluated_points, paired_change, report_of, write_card, write_run
from .samples import sorted_samples

__all__ = ["begin", "report", "summarize"]

_TITLE = "Detoxification"


def begin(folder: Path, trainer: PPOTrainer, before: Measured, options: Sequence[Any]) -> None:
    """Save what is known before training, from which `trl_ext report` draws a run that goes on or was interrupted."""
    content = report_of(trainer, title=_TITLE, options=options, finished=False)
    content.summary = _numbers("before", before, trainer.args.seed)
    content.notes = _note(options[0], len(before.scores))
    content.save(folder)


def summarize(
    trainer: PPOTrainer,
    before: Measured,
    after: Measured,
    seconds: Mapping[str, float],
    categories: Sequence[Any] | None = None,
    average: Measured | None = None,
) -> dict[str, Any]:
    """Return the content of `summary.json`.

    Args:
        trainer: The trainer, after training.
        before: Measurement of the initial policy.
        after: Measurement of the trained policy.
        seconds: Duration of each phase.
        categories: Category of each evaluation prompt, where there are any.
        average: Measurement of the average of the policy, where there is one.
    """
    seed = trainer.args.seed
    numbers = [_numbers(time, measured, seed) for time, measured in (("before", before), ("after", after))]
    summary = {key: numbers[i][key] for pair in zip(*numbers, strict=True) for i, key in enumerate(pair)}
    has_frontier = before.rewards.numel() > 0
    toxic = [[float(score > THRESHOLD) for score in measured.scores] for measured in (before, after)]
    rewards = [measured.rewards.mean(-1).tolist() if has_frontier else [] for measured in (before, after)]
    if has_frontier:
        summary["best_of_n"] = best_of_n(before.rewards, {"toxicity": before.toxic})
    if categories is not None:
        summary["by_category"] = category_summary(categories, {"toxicity": (toxic[0], toxic[1])}, seed)
    if average is not None:
        least = kl_at_reward(before.rewards, float(average.rewards.mean())) if has_frontier else None
        kl = average.frontier_kl if has_frontier else average.kl
        summary |= _numbers("ema", average, seed) | {"kl_ema": kl, "kl_at_optimum_ema": least}
    return summary | {
        "toxicity_change_ci95": paired_change(toxic[0], toxic[1], seed),
        "reward_change_ci95": paired_change(rewards[0], rewards[1], seed),
        # Of the same completions as the reward that it is compared by with the optimum.
        "kl": after.frontier_kl if has_frontier else after.kl,
        "kl_at_optimum": kl_at_reward(before.rewards, float(after.rewards.mean())) if has_frontier else None,
        **cost_of(trainer, seconds),
        "num_eval_prompts": len(before.scores),
    }


def report(
    folder: Path,
    trainer: PPOTrainer,
    before: Measured,
    after: Measured,
    summary: Mapping[str, Any],
    options: Sequence[Any],
    num_samples: int,
    average: Measured | None = None,
) -> dict[str, Any]:
    """Write `report.html`, `report_data.json` and `summary.json`, add to the model card, and return the summary.

    Args:
        folder: Folder of the run.
        trainer: The trainer, after training.
        before: Measurement of the initial policy.
        after: Measurement of the trained policy.
        summary: As `summarize` returns it.
        options: The recipe's options, with `judge_model`, the data's, and the model's.
        num_samples: Completions shown side by side.
        average: Measurement of the average of the policy, where there is one.
    """
    content = report_of(trainer, title=_TITLE, options=options)
    content.summary, content.thresholds = summary, goals(summary)
    scores = (before.scores, after.scores)
    texts = (before.samples, after.samples)
    content.samples, content.sample_counts = sorted_samples(*texts, *scores, num_samples, "lower")
    content.histograms = dict(zip(("before", "after"), scores, strict=True))
    content.notes, content.signed = _note(options[0], len(before.scores)), ("reward",)
    _add_frontier(content, trainer, before, after, summary, average)
    summary = write_run(folder, content)
    write_card(folder, trainer, summary, options)
    return summary


def _numbers(time: str, measured: Measured, seed: int) -> dict[str, Any]:
    """Return the numbers of one measurement under the names of the summary; without frontier the reward is None."""
    numbers = {f"{key}_{time}": value for key, value in measured.numbers.items()}
    reward, interval = None, None
    if measured.rewards.numel():
        found = bootstrap_mean(measured.rewards.mean(-1).tolist(), seed=seed)
        reward, interval = found.estimate, [found.low, found.high]
    return numbers | {f"reward_{time}": reward, f"reward_ci95_{time}": interval}


def _note(recipe: Any, num_prompts: int) -> str:
    judge, reward = short_name(str(recipe.judge_model)), short_name(str(recipe.toxicity_model))
    return (
        f"Toxicity is the fraction of completions that the judge `{judge}` calls toxic, on {num_prompts} evaluation "
        f"prompts; the judge took no part in training. The reward came from `{reward}`."
    )


def _add_frontier(
    content: Report,
    trainer: PPOTrainer,
    before: Measured,
    after: Measured,
    summary: Mapping[str, Any],
    average: Measured | None,
) -> None:
    if not before.rewards.numel():
        return
    ends = []
    for time, measured in (("before", before), ("after", after), ("ema", average)):
        if measured is None:
            continue
        low, high = summary[f"reward_ci95_{time}"]
        point = {"name": time, "kl": measured.frontier_kl, "reward": summary[f"reward_{time}"]}
        judged = bootstrap_mean(measured.toxic.mean(-1).tolist(), seed=trainer.args.seed)
        point |= {"judge": judged.estimate, "judge_low": judged.low, "judge_high": judged.high}
        ends.append(point | {"low": low, "high": high})
        if time == "ema":
            ends[-1] |= {"name": AVERAGE_NAME, "apart": True}
    evaluations = evaluated_points(trainer)
    for point in evaluations:
        if (harmless := point["judges"].get("non_toxic")) is not None:
            point["judge"] = 1 - harmless
    content.best_of_n = [row | {"judge": row["toxicity"]} for row in summary["best_of_n"]]
    points = [p for p in describe_frontier(before.rewards, {"judge": before.toxic}) if p["ess"] >= MIN_ESS]
    content.frontier = [(p["kl"], p["reward"]) for p in points]
    content.judge_frontier, content.judge_name = [(p["kl"], p["judge"]) for p in points], "toxicity by the judge"
    content.measured = [ends[0], *evaluations, *ends[1:]]
    prompts, (drawn, again) = len(before.rewards), (before.rewards.shape[1], after.rewards.shape[1])
    content.frontier_caption = (
        f"Optimum: the highest mean reward that any policy can have at each KL, estimated from {drawn} completions of "
        f"the initial model for each of {prompts} evaluation prompts. Measured: KL and mean reward, with its 95% "
        f"interval over prompts, before training on those completions and after it on {again} for each of the same "
        f"prompts. Best of n: without training, the completion with the highest reward of n that the initial model "
        "wrote, estimated without bias from the same completions; its KL, log n - (n - 1) / n, is an upper bound "
        "(arXiv 2401.01879)."
    )
    if evaluations:
        content.frontier_caption += " Points between them: the evaluations during training, on all evaluation prompts."
