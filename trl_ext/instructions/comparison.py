# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The eval stage: the policy before and after PPO, on the same prompts, by the gold reward."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from trl_ext.evaluation.intervals import bootstrap_mean
from trl_ext.evaluation.judges import compare_scores
from trl_ext.evaluation.sampling import Policy, Samples
from trl_ext.evaluation.win_rates import bootstrap_win_rate, by_category
from trl_ext.monitoring.console import CONSOLE
from trl_ext.reports.by_category import category_summary
from trl_ext.reports.runs import paired_change
from trl_ext.rewards import RewardFunction, RewardRunner
from trl_ext.text.decoding import as_completions

from .stages import read_record


class Measured(NamedTuple):
    """A policy at one time, on N prompts.

    Attributes:
        samples: One completion for each prompt.
        kl: KL to the initial policy, nats per completion.
        proxy: Training rewards, N numbers.
        gold: Gold rewards, N numbers; None without a judge.
        gold_by_prompt: Mean gold reward of several completions of each prompt, N numbers; None without a judge.
    """

    samples: Samples
    kl: float
    proxy: list[float]
    gold: list[float] | None
    gold_by_prompt: list[float] | None = None


def measure(
    policy: Policy, rewards: RewardRunner, rows: Dataset, gold: RewardFunction | None, seed: int, repeats: int = 1
) -> Measured:
    """Sample from a policy as it is now and score the completions; the same seed gives the same completions.

    Args:
        policy: The policy.
        rewards: The training reward.
        rows: N rows with `prompt`; the rewards read the other columns.
        gold: The gold reward, if there is one.
        seed: Of sampling.
        repeats: Completions of each prompt in `gold_by_prompt`.
    """
    prompts = rows["prompt"][:]
    with CONSOLE.activity("sampling answers to compare", len(prompts), "completions", long=True) as answers:
        samples = policy.sample(prompts, seed, answers.advance)
    columns = {name: rows[name][:] for name in rows.column_names if name != "prompt"}
    completions = as_completions(prompts, samples.completions)
    scores = rewards(prompts, completions, samples.completion_ids, columns, update_state=False)
    judged: Any = None
    by_prompt: list[float] | None = None
    if gold is not None:
        judged = _judged(gold, samples, columns)
        with CONSOLE.activity("sampling answers by category", long=True) as answers:
            again = [policy.sample(prompts, seed + i, answers.advance) for i in range(1, repeats)]
        marks = [judged, *(_judged(gold, more, columns) for more in again)]
        by_prompt = [statistics.fmean(values) for values in zip(*marks, strict=True)]
    proxy = scores.per_function[:, 0].tolist()
    return Measured(samples, policy.likelihoods(samples).kl, proxy, judged, by_prompt)


def _judged(gold: RewardFunction, samples: Samples, columns: Mapping[str, list[Any]]) -> Any:
    completions = as_completions(samples.prompts, samples.completions)
    return gold(prompts=samples.prompts, completions=completions, completion_ids=samples.completion_ids, **columns)


def gold_quality(gold: RewardFunction) -> Callable[..., dict[str, Any]]:
    """Return a function that gives the mean gold reward of samples, and its 95% interval."""

    def quality(samples: Samples, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        found = bootstrap_mean(_judged(gold, samples, columns))
        return {"gold": found.estimate, "gold_ci95": [found.low, found.high]}

    return quality


def summarize(
    before: Measured,
    after: Measured,
    categories: Sequence[Any] | None,
    reward: dict[str, Any],
    seconds: dict[str, float],
    average: Measured | None = None,
) -> dict[str, Any]:
    """Return the content of `summary.json`.

    Args:
        before: The initial policy.
        after: The trained policy.
        categories: Categories of the prompts, where there are any.
        reward: What the `reward` stage left.
        seconds: Duration of each stage.
        average: The average of the policy, where there is one.
    """
    summary: dict[str, Any] = dict.fromkeys(
        (
            "gold_win_rate",
            "gold_win_rate_low",
            "gold_win_rate_high",
            "reward_model_accuracy",
            "gold_before",
            "gold_after",
        )
    )
    if before.gold is not None and after.gold is not None:
        outcomes = compare_scores(after.gold, before.gold)
        rate = bootstrap_win_rate(outcomes)
        summary |= {
            "gold_win_rate": rate.estimate,
            "gold_win_rate_low": rate.low,
            "gold_win_rate_high": rate.high,
            "gold_ties": outcomes.count(0) / len(outcomes),
            **_compared("gold", before.gold, after.gold),
        }
        if categories is not None:
            summary["by_category"] = {"gold": gold_by_category(categories, before, after)}
    if average is not None:
        lengths, gold = average.samples.lengths, average.gold
        summary |= {"kl_ema": average.kl, **_at("ema", "proxy", average.proxy), **_at("ema", "mean_length", lengths)}
        summary |= {} if gold is None else _at("ema", "gold", gold)
    return summary | {
        "reward_model_accuracy": reward["accuracy"]["estimate"] if "accuracy" in reward else None,
        "reward_model": reward,
        **_compared("proxy", before.proxy, after.proxy),
        "kl": after.kl,
        **_compared("mean_length", before.samples.lengths, after.samples.lengths),
        "num_eval_prompts": len(before.proxy),
        "seconds": seconds,
    }


def _compared(name: str, before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Return the means before and after on the same prompts, with their 95% intervals and that of the change."""
    numbers: dict[str, Any] = {}
    for time, values in (("before", before), ("after", after)):
        numbers |= _at(time, name, values)
    return numbers | {f"{name}_change_ci95": paired_change(before, after, seed=0)}


def _at(time: str, name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return the mean of a quantity at one time, and its 95% interval."""
    found = bootstrap_mean(values)
    return {f"{name}_{time}": found.estimate, f"{name}_ci95_{time}": [found.low, found.high]}


def gold_by_category(categories: Sequence[Any], before: Measured, after: Measured) -> dict[str, dict[str, Any]]:
    """Return mean gold reward before and after by category, its change, and the win rate of the answers compared."""
    scores = (before.gold_by_prompt or (), after.gold_by_prompt or ())
    rows = category_summary(categories, {"gold": scores}, seed=0)["gold"]
    rates = by_category(compare_scores(after.gold or (), before.gold or ()), categories)
    return {name: row | {"win_rate": rates[name].rate.estimate} for name, row in rows.items()}


def read_run(folder: Path) -> dict[str, Any]:
    """Return the `log_history` and `alarms` that a PPO run left in its folder.

    Raises:
        ValueError: if there is no finished run.
    """
    record = read_record(folder)
    if record is None or "log_history" not in record.result:
        raise ValueError(f"`compare_with`: there is no finished PPO run in '{folder}'.")
    return record.result
