# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""PPO's losses and what is logged about them.

Losses come back per token, neither masked nor averaged: `masked_sum(loss, mask) / tokens of the global minibatch`
gives every token the same weight, however the batch is cut up. A token whose inputs are not finite has the loss NaN.
Inside the mask that shows in the sum; outside it, it reaches neither the sum nor any gradient.
"""

import math

import torch
from torch import Tensor

from .kl import MAX_LOG_RATIO, kl_estimate
from .masking import Reduce, at_least_float32, global_moments

# Bounds the variance of the KL loss. No token comes near it in a minibatch that `max_ratio` lets through.
MAX_KL_WEIGHT = 10.0


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    *,
    cliprange: float,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the clipped surrogate loss (Schulman et al. 2017, arXiv 1707.06347, eq. 7), per token.

    `max(-A * ratio, -A * clip(ratio, 1 - cliprange, 1 + cliprange_high))`, and for A < 0 at most `-dual_clip * A`.

    Args:
        logps: (B, C), log-probabilities under the policy being trained, nats.
        old_logps: (B, C), the same when the rollout was made, nats.
        advantages: (B, C).
        cliprange: lower clip: the ratio counts as at least 1 - cliprange.
        cliprange_high: upper clip, likewise at most 1 + cliprange_high (clip-higher, DAPO, arXiv 2503.14476); None:
            `cliprange`.
        dual_clip: bound of the ratio that multiplies a negative advantage (dual clip, arXiv 1912.09729, where
            it is 3); None: no limit.

    Returns:
        `(per_token_loss, ratio, clipped)`, each (B, C). The ratio is detached; its logarithm is bounded to +-20.
        `clipped` marks the tokens whose loss or gradient a bound changes, not those whose ratio is merely outside.

    Raises:
        ValueError: a clip range is negative, or `dual_clip` is not above 1.
    """
    high = cliprange if cliprange_high is None else cliprange_high
    if not (cliprange >= 0 and high >= 0):
        raise ValueError(f"cliprange is {cliprange} and cliprange_high {cliprange_high}; neither may be negative.")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}; it bounds the ratio from above, so it must exceed 1 (e.g. 3).")

    log_ratio = at_least_float32(logps) - at_least_float32(old_logps)
    finite = torch.isfinite(log_ratio) & torch.isfinite(advantages)
    log_ratio, advantages = _where_finite(finite, log_ratio), _where_finite(finite, advantages)

    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - cliprange, 1.0 + high))
    bounded = log_ratio.abs() > MAX_LOG_RATIO
    clipped = (advantages > 0) & (bounded | (ratio > 1.0 + high))
    clipped |= (advantages < 0) & (bounded | (ratio < 1.0 - cliprange))
    if dual_clip is not None:
        negative = advantages < 0
        loss = torch.where(negative, torch.minimum(loss, -dual_clip * advantages), loss)
        clipped |= negative & (ratio > dual_clip)
    return _poison(loss, finite), _poison(ratio.detach(), finite), clipped


def outside_range(logps: Tensor, old_logps: Tensor, ratio_range: tuple[float, float]) -> Tensor:
    """Return the tokens whose ratio, pi / pi_old, left a range and which get no policy gradient then.

    Clipping lets a token go on that moves back, and one that has moved away against its advantage, however far. The
    range leaves out both, whatever the sign of the advantage: data of a policy too far away (SAO, arXiv 2607.07508).

    Args:
        logps: (B, C), log-probabilities under the policy being trained, nats.
        old_logps: (B, C), the same when the rollout was made, nats.
        ratio_range: the least and the greatest ratio that is learned from, around 1.

    Returns:
        (B, C) bool. False where the ratio is not a number, so that the loss shows it.

    Raises:
        ValueError: the range does not contain 1 between its ends.
    """
    low, high = ratio_range
    if not 0 <= low < 1 < high:
        raise ValueError(f"ratio_range is {ratio_range}; it needs 0 <= low < 1 < high, such as (0.5, 2).")
    ratio = (at_least_float32(logps) - at_least_float32(old_logps)).detach().exp()
    return (ratio < low) | (ratio > high)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the squared error of the critic, clipped around its prediction at rollout time, per token.

    `0.5 * max((V - R)^2, (V_clipped - R)^2)` with `V_clipped = V_old + clip(V - V_old, +-cliprange_value)`: detail 19
    of "The N Implementation Details of RLHF with PPO".

    Args:
        values: (B, C), the critic being trained.
        old_values: (B, C), its values when the rollout was made.
        returns: (B, C), `advantages + old_values`.
        cliprange_value: in units of the return; None does not clip.

    Returns:
        `(per_token_loss, clipped)`, each (B, C); `clipped` marks the tokens that the clip keeps from learning.

    Raises:
        ValueError: `cliprange_value` is negative.
    """
    if cliprange_value is not None and not cliprange_value >= 0:
        raise ValueError(f"cliprange_value is {cliprange_value}; it may not be negative (None turns the clip off).")
    finite = torch.isfinite(values) & torch.isfinite(old_values) & torch.isfinite(returns)
    values, old_values, returns = (_where_finite(finite, tensor) for tensor in (values, old_values, returns))

    squared_error = (values - returns) ** 2
    clipped = torch.zeros_like(finite)
    if cliprange_value is not None:
        clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
        clipped_error = (clipped_values - returns) ** 2
        outside = (values - old_values).abs() > cliprange_value
        clipped = outside & (clipped_error > squared_error)
        squared_error = torch.maximum(squared_error, clipped_error)
    return _poison(0.5 * squared_error, finite), clipped


def kl_loss(
    logps: Tensor, old_logps: Tensor, ref_logps: Tensor, *, estimator: str = "k2", bias_correction: bool = True
) -> Tensor:
    """Return KL(policy || reference) as a term of the loss, per token.

    With `w = min(pi / pi_old, MAX_KL_WEIGHT)`, held constant, the loss is `w * k`. The old policy sampled the tokens:
    the expected gradient of `k` alone is that of a KL only while the policy equals the old one, and the weight makes
    it so in every minibatch (arXiv 2510.01555). k2 has the gradient of the reverse KL, k3 that of the forward KL.

    Args:
        logps: (B, C), log-probabilities under the policy being trained, nats.
        old_logps: (B, C), the same when the rollout was made, nats.
        ref_logps: (B, C), under the reference, nats.
        estimator: `k2` or `k3`; the expected gradient of `k1` is zero.
        bias_correction: False leaves the weight out.

    Returns:
        (B, C), nats per token.
    """
    kl = kl_estimate(logps, ref_logps, estimator)
    if not bias_correction:
        return kl
    log_ratio = (at_least_float32(logps) - at_least_float32(old_logps)).detach()
    finite = torch.isfinite(log_ratio)
    weight = _where_finite(finite, log_ratio).clamp(max=math.log(MAX_KL_WEIGHT)).exp()
    return _poison(kl * weight, finite)


def approx_kl(logps: Tensor, old_logps: Tensor) -> Tensor:
    """Estimate KL(old policy || new policy), the size of the update, per token.

    Schulman's k3, `(r - 1) - log r` with `r = exp(logps - old_logps)`: unbiased, since the old policy sampled the
    tokens, and never negative.

    Args:
        logps: (B, C), nats.
        old_logps: (B, C), nats.

    Returns:
        (B, C), nats per token.
    """
    return kl_estimate(old_logps, logps, "k3")


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce | None = None) -> Tensor:
    """Return the share of the returns' variance that the critic predicts, `1 - Var(returns - values) / Var(returns)`.

    Args:
        values: (B, C).
        returns: (B, C).
        mask: (B, C).
        reduce: sums over processes, as in `global_moments`.

    Returns:
        0-dim tensor: 1 is a perfect critic, 0 one that predicts a constant, below 0 is worse than a constant.
        0.0 where the returns do not vary (or the mask is empty), since there is nothing to explain.
    """
    mean, var, _ = global_moments(returns, mask, reduce)
    _, residual_var, _ = global_moments(at_least_float32(returns) - at_least_float32(values), mask, reduce)
    # Equal returns have a variance of rounding noise, relative to their size; dividing by it would log -1e10.
    varies = var > (1e-6 * mean) ** 2
    return torch.where(varies, 1.0 - residual_var / torch.where(varies, var, torch.ones_like(var)), 0.0)


def _where_finite(finite: Tensor, values: Tensor) -> Tensor:
    # Non-finite inputs leave before the arithmetic: the derivative of a square or an exponential at NaN is NaN, and
    # the zero that a mask sends back would not undo it.
    values = at_least_float32(values)
    return torch.where(finite, values, torch.zeros_like(values))


def _poison(values: Tensor, finite: Tensor) -> Tensor:
    return torch.where(finite, values, torch.full_like(values, torch.nan))
