# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward, KL and quality of a policy along the line from its reference: a frontier from one run.

The points share their seeds, so that what the same prompts and the same random numbers have in common does not stand
between them.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trl_ext.actor_critic.interpolation import WeightPath
from trl_ext.experience.prompts import split_columns
from trl_ext.monitoring.console import CONSOLE
from trl_ext.rewards import RewardRunner
from trl_ext.text.decoding import as_completions
from trl_ext.text.ngrams import distinct_n
from trl_ext.text.prompt_column import PROMPT

from .frontier import MIN_ESS, kl_at_reward, optimal_frontier
from .intervals import bootstrap_mean
from .perplexity import perplexity
from .sampling import Policy, Samples

__all__ = ["PathResult", "Task", "choose", "least_kl", "measure_path", "split_rows"]

Quality = Callable[[Samples, Mapping[str, list[Any]]], Mapping[str, Any]]


class Task(NamedTuple):
    """How the points of a path are measured.

    Attributes:
        policy: The policy, whose weights the path moves.
        rewards: The reward, or None where there is none to measure.
        columns: P prompts, and the other columns that rewards and judge read.
        quality: Returns numbers by name for samples and their columns: a judge that was not trained on.
        frontier: The first F prompts, and the K completions of the reference for each of them, from which the least KL
            for a reward is estimated; 0 of either for none.
        samples: Completions of every other policy for each of those F prompts.
        missing_eos_penalty: As in training.
        prompt_column: As in training.
        seed: Of sampling.
    """

    policy: Policy
    rewards: RewardRunner | None
    columns: Mapping[str, list[Any]]
    quality: Quality | None = None
    frontier: tuple[int, int] = (128, 32)
    samples: int = 8
    missing_eos_penalty: float | None = None
    prompt_column: str = PROMPT
    seed: int = 0


class PathResult(NamedTuple):
    """A measured path.

    Attributes:
        points: One dictionary a point, by eta: `eta`, `reward` (the mean over prompts of the completions that have one;
            None without any), its interval `reward_ci95`, `kl` in nats per completion, `kl_at_optimum` (the least KL
            for this reward, on the prompts whose completions all have one; None where it cannot be told), `kl_ratio`,
            the judge's numbers, `perplexity` under the reference, `distinct_2`, `mean_length`, `empty_fraction` and
            `terminated_fraction`.
        optimum: (KL, reward) pairs of the optimal frontier.
    """

    points: list[dict[str, Any]]
    optimum: list[tuple[float, float]]


def measure_path(
    path: WeightPath, etas: Sequence[float], task: Task, on_point: Callable[[PathResult], None] | None = None
) -> PathResult:
    """Measure the reference and a policy at several places of its path, and leave it where it was trained, at 1.

    Args:
        path: The path of `task.policy`.
        etas: Places on it; 0, the reference, is always measured, and first.
        task: What is measured.
        on_point: Called with what is measured so far after each point.
    """
    points: list[dict[str, Any]] = []
    result = PathResult(points, [])
    drawn: Tensor | None = None  # rewards of the reference
    try:
        for eta in [0.0, *sorted(set(etas) - {0.0})]:
            path.move_to(eta)
            numbers, rewards = _measure(task, task.frontier[1] if eta == 0 else task.samples, f"eta {eta:g}")
            if drawn is None:
                drawn = rewards
                result.optimum.extend((p.kl, p.reward) for p in _optimum(rewards) if p.ess >= MIN_ESS)
            least = least_kl(drawn, rewards)
            numbers |= {"kl_at_optimum": least, "kl_ratio": numbers["kl"] / least if least else None}
            points.append({"eta": float(eta), **numbers})
            if on_point is not None:
                on_point(result)
    finally:
        path.move_to(1.0)
    return result


def choose(points: Sequence[Mapping[str, Any]], kl_budget: float | None) -> Mapping[str, Any]:
    """Return the point of the highest reward whose KL is within `kl_budget`, in nats per completion.

    Where none with a reward is within it, the point of the least KL; without a budget, that of the highest reward.
    """
    within = [point for point in points if kl_budget is None or point["kl"] <= kl_budget]
    known = [point for point in within if point["reward"] is not None]
    return max(known, key=lambda point: point["reward"]) if known else min(points, key=lambda point: point["kl"])


def split_rows(count: int) -> tuple[list[int], list[int]]:
    """Return two halves of `count` rows, every other one each: one to choose a point on, one to report it on.

    Raises:
        ValueError: for a single row.
    """
    if count < 2:
        raise ValueError(
            "One evaluation prompt cannot be both chosen on and reported on; give at least two "
            "(`--num_eval_prompts`), or leave out `--keep_best_eta`."
        )
    return list(range(1, count, 2)), list(range(0, count, 2))


def _measure(task: Task, samples: int, name: str) -> tuple[dict[str, Any], Tensor]:
    """Return the numbers of the policy as it is now, and its rewards of K completions of F prompts, shape (F, K)."""
    policy, seed = task.policy, task.seed
    prompts, others = split_columns(task.columns, task.prompt_column)
    with CONSOLE.activity(f"sampling at {name}", len(prompts), "completions", long=True) as shown:
        made = policy.sample(prompts, seed, shown.advance)
    likelihoods = policy.likelihoods(made)
    judged = {} if task.quality is None else dict(task.quality(made, others))
    kl = likelihoods.kl
    totals = _scores(task, made, others)
    few = min(task.frontier[0], len(prompts))
    rewards = torch.zeros(0, 0, dtype=torch.float64)
    if task.rewards is not None and few and samples:
        repeated = [i for i in range(few) for _ in range(samples)]
        with CONSOLE.activity(f"sampling for the least KL at {name}", len(repeated), "completions") as shown:
            drawn = policy.sample([prompts[i] for i in repeated], seed + 1, shown.advance)
        totals = _scores(task, drawn, {name: [values[i] for i in repeated] for name, values in others.items()})
        kl, rewards = policy.likelihoods(drawn).kl, totals.view(few, samples)
        totals = rewards.nanmean(-1)
    known = totals[~totals.isnan()].tolist()
    interval = bootstrap_mean(known, seed=seed) if known else None
    nlls = likelihoods.ref_nlls
    numbers = {
        "reward": None if interval is None else interval.estimate,
        "reward_ci95": None if interval is None else [interval.low, interval.high],
        "kl": kl,
        **judged,
        "perplexity": perplexity(float(nlls.sum()), sum(made.lengths)),
        "distinct_2": distinct_n([text.split() for text in made.completions], 2),
        "mean_length": statistics.fmean(made.lengths),
        "empty_fraction": statistics.fmean(made.empty),
        "terminated_fraction": statistics.fmean(made.terminated),
    }
    return numbers, rewards


def _scores(task: Task, samples: Samples, columns: Mapping[str, list[Any]]) -> Tensor:
    """Return the reward of each sample as in training, float64; NaN where it has none."""
    if task.rewards is None:
        return torch.zeros(0, dtype=torch.float64)
    completions = as_completions(samples.prompts, samples.completions)
    scores = task.rewards(samples.prompts, completions, samples.completion_ids, dict(columns), update_state=False)
    totals = scores.total.double().where(scores.valid, math.nan).cpu()
    if task.missing_eos_penalty is not None:
        totals = totals - task.missing_eos_penalty * (~torch.tensor(samples.terminated)).double()
    return totals


def _optimum(drawn: Tensor) -> list[Any]:
    drawn = drawn[~drawn.isnan().any(-1)]
    return optimal_frontier(drawn) if drawn.numel() else []


def least_kl(drawn: Tensor, rewards: Tensor) -> float | None:
    """Return the least KL for the mean of `rewards`; None without samples, and where they are too few to tell.

    A warning says where they are so few that it is a lower bound.

    Args:
        drawn: Rewards of the reference's completions, (F, K).
        rewards: Those of a policy for the same prompts, (F, M). A prompt with a completion without one does not count.
    """
    rows = ~(drawn.isnan().any(-1) | rewards.isnan().any(-1))
    if not rows.any() or not drawn.numel():
        return None
    least = kl_at_reward(drawn[rows], float(rewards[rows].mean()))
    return None if math.isinf(least) else least
