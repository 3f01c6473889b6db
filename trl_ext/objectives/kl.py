# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Estimators of the KL divergence from samples (J. Schulman, "Approximating KL Divergence", 2020)."""

import torch
from torch import Tensor

from .masking import at_least_float32

KL_ESTIMATORS = ("k1", "k2", "k3")

# exp(20) is 5e8: no policy in use comes near it, and its square still fits into float32.
MAX_LOG_RATIO = 20.0


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) per token from tokens that the policy sampled.

    With `log r = ref_logps - logps`: `k1 = -log r`, unbiased, but negative for many a token;
    `k2 = (log r)^2 / 2`, biased, never negative; `k3 = (r - 1) - log r`, unbiased, never negative, with less variance
    than k1 while the two are close.

    In the reward, k1 has the right gradient, unlike k2 and k3. As a loss on tokens of the policy itself, k1 has an
    expected gradient of zero, k2 the gradient of the reverse KL, and k3 that of the forward KL. For tokens of an older
    policy see `kl_loss`.

    Args:
        logps: (B, C), log-probabilities of the tokens under the policy, nats.
        ref_logps: (B, C), the same under the reference, nats.
        estimator: one of `KL_ESTIMATORS`.

    Returns:
        (B, C), nats per token. For k2 and k3 NaN where the log-ratio is not finite, but with a gradient of 0 there
        once masked out. Only the log-ratio inside the exponential is clamped, to +-20.

    Raises:
        ValueError: `estimator` is unknown.
    """
    log_ratio = at_least_float32(logps) - at_least_float32(ref_logps)
    if estimator == "k1":
        return log_ratio
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"KL estimator {estimator!r} is unknown; use one of {', '.join(KL_ESTIMATORS)}.")
    # NaN is replaced before the non-linear part and put back after it: its derivative there would be NaN as well, and
    # that survives a later mask (0 * NaN).
    finite = torch.isfinite(log_ratio)
    log_ratio = torch.where(finite, log_ratio, torch.zeros_like(log_ratio))
    kl = 0.5 * log_ratio**2 if estimator == "k2" else _k3(log_ratio)
    return torch.where(finite, kl, torch.full_like(kl, torch.nan))


def _k3(log_ratio: Tensor) -> Tensor:
    bounded = (-log_ratio).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1, since exp(x) - 1 - x has no digits left at the log-ratios of a first update. Its last bit may still be
    # wrong, hence the clamp at 0.
    return (torch.expm1(bounded) + log_ratio).clamp(min=0.0)
