# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The best reward that any policy can reach for a given KL, estimated from samples of the reference.

Maximising `E_pi[r] - beta * KL(pi || ref)` has the closed-form solution `pi*(y|x) ∝ ref(y|x) exp(r(x, y) / beta)`
(Korbak et al. 2022, "RL with KL penalties is better viewed as Bayesian inference"; Rafailov et al. 2023, eq. 4).
So K samples of the reference per prompt, re-weighted by a softmax of their rewards, are samples of the optimum: no
training is needed to know the limit. One `beta` for all prompts gives the optimum for the *mean* KL over prompts.

The weights are self-normalized. The KL of an estimate can therefore never exceed `log K`, and once the effective
sample size falls to a few samples both KL and reward are underestimates: look at `ess` before believing a point.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

MIN_ESS = 4.0
"""Effective samples per prompt below which KL and reward of a point are underestimates."""


@dataclass(frozen=True)
class FrontierPoint:
    """One point of the frontier.

    Attributes:
        beta: KL coefficient whose optimum this is, in units of reward per nat.
        kl: KL(pi* || ref) in nats per completion, averaged over prompts.
        reward: Expected reward under pi*, averaged over prompts.
        ess: Effective sample size per prompt, `1 / sum_k w_k^2`, averaged over prompts (1 to K).
    """

    beta: float
    kl: float
    reward: float
    ess: float


def check_rewards(rewards: Tensor) -> Tensor:
    """Return rewards of K completions for each of P prompts as float64; refuse what is not finite and (P, K)."""
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(
            f"`rewards` has shape {tuple(rewards.shape)}; pass one row of K sampled rewards per prompt, shape (P, K)."
        )
    if not torch.isfinite(rewards).all():
        count = int((~torch.isfinite(rewards)).sum())
        raise ValueError(f"{count} of {rewards.numel()} rewards are NaN or infinite; drop those prompts first.")
    # exp(r / beta) spans many orders of magnitude, and the KL is a small difference of large terms.
    return rewards.double()


def tilted(rewards: Tensor, beta: float) -> Tensor:
    """Return the weights that turn reference samples into samples of the optimal policy for `beta`.

    Args:
        rewards: Shape (P, K): rewards of K reference completions for each of P prompts.
        beta: KL coefficient, > 0, in units of reward per nat.

    Returns:
        Shape (P, K), float64; every row sums to 1: `softmax(rewards / beta)`.

    Raises:
        ValueError: If `beta` is not positive, or `rewards` is not a finite (P, K) tensor.
    """
    rewards = check_rewards(rewards)
    if not beta > 0:
        raise ValueError(f"`beta` is {beta}; the KL coefficient of an optimum must be greater than 0.")
    return torch.softmax(rewards / beta, dim=-1)


def expected(values: Tensor, weights: Tensor) -> float:
    """Return the mean over prompts of the weighted mean of `values`.

    Use it with the weights of [`tilted`] for any second quantity of the same samples: a judge's toxicity, the length.

    Args:
        values: Shape (P, K).
        weights: Shape (P, K), every row summing to 1.

    Raises:
        ValueError: If the shapes differ.
    """
    if values.shape != weights.shape:
        raise ValueError(
            f"`values` has shape {tuple(values.shape)} and `weights` {tuple(weights.shape)}; both must be (P, K)."
        )
    return float((values.to(weights.dtype) * weights).sum(-1).mean())


def frontier_point(rewards: Tensor, beta: float) -> FrontierPoint:
    """Return the optimum for one `beta`.

    Per prompt `KL(pi* || ref) = E_pi*[r] / beta - log mean_k exp(r_k / beta)`.

    Args:
        rewards: Shape (P, K).
        beta: KL coefficient, > 0.

    Raises:
        ValueError: As [`tilted`].
    """
    weights = tilted(rewards, beta)
    # The same expression with the mean reward taken out of both terms: exact for rewards far from 0 too.
    scaled = (rewards.double() - rewards.double().mean(-1, keepdim=True)) / beta
    log_partition = torch.logsumexp(scaled, dim=-1) - math.log(rewards.shape[1])
    kl = ((weights * scaled).sum(-1) - log_partition).clamp_min(0.0)
    ess = weights.square().sum(-1).reciprocal()
    return FrontierPoint(float(beta), float(kl.mean()), expected(rewards, weights), float(ess.mean()))


def default_betas(rewards: Tensor, num: int = 24) -> list[float]:
    """Return a geometric grid from 30 down to 0.1 times the standard deviation of the rewards within a prompt.

    Args:
        rewards: Shape (P, K).
        num: Number of coefficients.
    """
    spread = float(check_rewards(rewards).var(-1, correction=0).mean().sqrt()) or 1.0
    exponents = torch.linspace(math.log(30.0), math.log(0.1), num, dtype=torch.float64)
    return [spread * math.exp(float(exponent)) for exponent in exponents]


def optimal_frontier(rewards: Tensor, betas: Iterable[float] | None = None) -> list[FrontierPoint]:
    """Return points of the optimal frontier of reward over KL.

    Args:
        rewards: Shape (P, K): rewards of K reference completions for each of P prompts.
        betas: KL coefficients; [`default_betas`] if None.

    Returns:
        One point per coefficient, in the order of `betas`.

    Raises:
        ValueError: As [`tilted`].
    """
    return [frontier_point(rewards, beta) for beta in (default_betas(rewards) if betas is None else betas)]


def describe_frontier(
    rewards: Tensor, values: dict[str, Tensor], betas: Iterable[float] | None = None
) -> list[dict[str, float]]:
    """Return the frontier with further quantities of the same samples.

    Args:
        rewards: Shape (P, K).
        values: Further quantities by name, each of shape (P, K).
        betas: KL coefficients, or None for a grid that fits.

    Returns:
        One dictionary per coefficient: `beta`, `kl`, `reward`, `ess` and each of `values` under that optimum.
    """
    rows = []
    for point in optimal_frontier(rewards, betas):
        weights = tilted(rewards, point.beta)
        rows.append(asdict(point) | {name: expected(value, weights) for name, value in values.items()})
    return rows


def point_at_reward(rewards: Tensor, target: float) -> FrontierPoint:
    """Return the point of the frontier where the mean reward is `target`.

    Args:
        rewards: Shape (P, K).
        target: Mean reward over prompts to reach.

    Returns:
        The point. At or below the reference's own mean reward: `beta` = inf, `kl` = 0, `ess` = K. Above the mean of
        every prompt's best sample: `kl` = inf, `beta` = 0, `ess` = 0, since these samples cannot show the cost.

    Raises:
        ValueError: If `target` is not finite, or as [`tilted`].
    """
    samples = check_rewards(rewards)
    if not math.isfinite(target):
        raise ValueError(f"`target` is {target}; pass a finite mean reward.")
    mean = float(samples.mean())
    # Means that are summed in another order differ by rounding; equal rewards leave no other beta to look for.
    if target <= mean + 1e-12 * float(samples.abs().max()):
        return FrontierPoint(math.inf, 0.0, mean, float(samples.shape[1]))
    best = float(samples.max(-1).values.mean())
    if target > best:
        return FrontierPoint(0.0, math.inf, best, 0.0)
    spread = float(samples.max() - samples.min())
    low, high = math.log(spread) - 16.0, math.log(spread) + 16.0
    # The reward falls monotonically in beta, over many orders of magnitude: bisect on log(beta).
    for _ in range(80):
        middle = (low + high) / 2
        if frontier_point(samples, math.exp(middle)).reward > target:
            low = middle
        else:
            high = middle
    return frontier_point(samples, math.exp(high))


def kl_at_reward(rewards: Tensor, target: float, *, min_ess: float = MIN_ESS) -> float:
    """Return the least KL, in nats per completion, at which any policy reaches the mean reward `target`.

    Args:
        rewards: Shape (P, K): rewards of K reference completions for each of P prompts.
        target: Mean reward over prompts to reach, on the same prompts.
        min_ess: Warn when the effective sample size per prompt is below this: the value is then a lower bound only.

    Returns:
        The KL; 0 if the reference itself reaches `target`; inf if not even every prompt's best sample does.

    Raises:
        ValueError: As [`point_at_reward`].
    """
    point = point_at_reward(rewards, target)
    if 0 < point.ess < min_ess and point.kl > 0:
        warnings.warn(
            f"The least KL for reward {target:.4g} rests on {point.ess:.1f} effective samples per prompt "
            f"(below {min_ess:g}); it is a lower bound: draw more than {rewards.shape[1]} samples per prompt.",
            stacklevel=2,
        )
    return point.kl
