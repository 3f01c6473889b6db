# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What best-of-n sampling reaches without any training: sample n completions, keep the one with the highest reward.

From K samples of the reference per prompt every n up to K is known without further samples: the expected best of a
random subset of n is a weighted mean of the sorted rewards, the unbiased estimator with C(i - 1, n - 1) / C(K, n) as
the weight of the i-th smallest (Nakano et al. 2021, "WebGPT", arXiv 2112.09332, eq. 1). The same weights give every
other quantity of the kept completions, a judge's for instance: where it gets worse while the reward rises, the reward
is being exploited, and by sampling alone.

The KL to the reference is at most log n - (n - 1) / n nats per completion. This is an upper bound and no estimate
(Beirami et al. 2024, "Theoretical guarantees on the best-of-n alignment policy", arXiv 2401.01879): where the
reference often repeats itself the KL is smaller, so that the policy is better than its place on the KL axis.
"""

import math

import torch
from torch import Tensor

from .frontier import check_rewards, expected

__all__ = ["best_of_n", "best_of_n_weights", "kl_bound"]

_MOST = 64


def kl_bound(n: int) -> float:
    """Return the upper bound of KL(best of n || reference) in nats per completion, log n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def best_of_n_weights(rewards: Tensor, n: int) -> Tensor:
    """Return the probability with which each sample is the best of n of its row, drawn without replacement.

    Args:
        rewards: Shape (P, K): rewards of K reference completions for each of P prompts.
        n: Completions to choose from, 1 to K.

    Returns:
        Shape (P, K), float64; every row sums to 1. Samples of equal reward share their probability equally.

    Raises:
        ValueError: If `n` is not between 1 and K, or `rewards` is not a finite (P, K) tensor.
    """
    rewards = check_rewards(rewards).contiguous()
    count = rewards.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"`n` is {n}; it must be between 1 and the {count} samples of each prompt.")
    weights = [math.comb(i, n - 1) / math.comb(count, n) for i in range(count)]  # of the sorted samples
    below = torch.tensor([0.0, *weights], dtype=torch.float64).cumsum(0)
    ordered = rewards.sort(-1).values
    first, end = torch.searchsorted(ordered, rewards), torch.searchsorted(ordered, rewards, right=True)
    return (below[end] - below[first]) / (end - first)


def best_of_n(rewards: Tensor, values: dict[str, Tensor] | None = None) -> list[dict[str, float]]:
    """Return what the best of n = 1, 2, 4, ... samples has, for n up to K and 64.

    Args:
        rewards: Shape (P, K).
        values: Further quantities of the same samples by name, each of shape (P, K).

    Returns:
        One dictionary for each n: `n`, `kl_bound` (an upper bound), `reward` and each of `values`, means over prompts.

    Raises:
        ValueError: If `rewards` is not a finite (P, K) tensor.
    """
    rows, n = [], 1
    while n <= min(_MOST, check_rewards(rewards).shape[1]):
        weights = best_of_n_weights(rewards, n)
        measured = {"reward": rewards, **(values or {})}
        rows.append(
            {"n": n, "kl_bound": kl_bound(n)} | {name: expected(value, weights) for name, value in measured.items()}
        )
        n *= 2
    return rows
