# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The eval stage: the policy before and after PPO, on the same prompts, by the gold reward."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from trl_ext.evaluation.intervals import bootstrap_mean
from trl_ext.running.evaluation import Sampler, Samples
from trl_ext.text.decoding import as_completions
from trl_ext.trainer import PPOTrainer

from .stages import read_record


class Measured(NamedTuple):
    """A policy at one time, on N prompts.

    Attributes:
        samples: One completion for each prompt.
        kl: KL to the initial policy, nats per completion.
        proxy: Training rewards, N numbers.
        gold: Gold rewards, N numbers; None without a judge.
        lengths: Tokens, without the EOS token.
    """

    samples: Samples
    kl: float
    proxy: list[float]
    gold: list[float] | None
    lengths: list[float]


def measure(trainer: PPOTrainer, rows: Dataset, gold: Any | None) -> Measured:
    """Sample from a trainer's policy as it is now, with the same seed at each call, and score it."""
    args, prompts = trainer.args, rows["prompt"][:]
    model = trainer.accelerator.unwrap_model(trainer.model)
    sampler = Sampler(model, trainer.generation_engine, trainer.processing_class, args)
    samples = sampler(prompts, args.seed)
    likelihoods = sampler.likelihoods(samples)
    columns = {name: rows[name][:] for name in rows.column_names if name != "prompt"}
    completions = as_completions(prompts, samples.completions)
    scores = trainer.rewards(prompts, completions, samples.completion_ids, columns, update_state=False)
    judged = None
    if gold is not None:
        judged = gold(prompts=prompts, completions=completions, completion_ids=samples.completion_ids, **columns)
    proxy = scores.per_function[:, 0].tolist()
    return Measured(samples, likelihoods.kl, proxy, judged, likelihoods.lengths.tolist())


def wins(after: Sequence[float], before: Sequence[float]) -> list[float]:
    """1 for every prompt on which `after` scores higher than `before`, 0 where it scores lower, 1/2 for a tie."""
    return (np.sign(np.asarray(after) - np.asarray(before)) / 2 + 0.5).tolist()


def summarize(
    before: Measured, after: Measured, kinds: Sequence[str] | None, reward: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    """Everything that goes into `summary.json`."""
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
        won = wins(after.gold, before.gold)
        rate = bootstrap_mean(won)
        summary |= {
            "gold_win_rate": rate.estimate,
            "gold_win_rate_low": rate.low,
            "gold_win_rate_high": rate.high,
            "gold_ties": won.count(0.5) / len(won),
            "gold_before": float(np.mean(before.gold)),
            "gold_after": float(np.mean(after.gold)),
        }
        if kinds is not None:
            summary["by_kind"] = by_kind(kinds, before.gold, after.gold)
    return summary | {
        "reward_model_accuracy": reward["accuracy"]["estimate"] if "accuracy" in reward else None,
        "reward_model": reward,
        "proxy_before": float(np.mean(before.proxy)),
        "proxy_after": float(np.mean(after.proxy)),
        "kl": after.kl,
        "mean_length_before": float(np.mean(before.lengths)),
        "mean_length_after": float(np.mean(after.lengths)),
        "num_eval_prompts": len(before.proxy),
        "seconds": seconds,
    }


def by_kind(kinds: Sequence[str], before: Sequence[float], after: Sequence[float]) -> dict[str, dict[str, float]]:
    """Mean gold reward before and after, and the win rate, for each kind of prompt."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, kind in enumerate(kinds):
        places[kind].append(i)
    table = {}
    for kind in sorted(places):
        old, new = [before[i] for i in places[kind]], [after[i] for i in places[kind]]
        table[kind] = {
            "before": float(np.mean(old)),
            "after": float(np.mean(new)),
            "win_rate": float(np.mean(wins(new, old))),
            "prompts": len(old),
        }
    return table


def read_run(folder: Path) -> dict[str, Any]:
    """What a PPO run left in its folder: `log_history` and `alarms`.

    Raises:
        ValueError: if there is no finished run.
    """
    record = read_record(folder)
    if record is None or "log_history" not in record.result:
        raise ValueError(f"`compare_with`: there is no finished PPO run in '{folder}'.")
    return record.result
