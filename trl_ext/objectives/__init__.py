# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The mathematics of PPO: pure functions of (batch, completion) tensors, with no model and no state."""

from .advantages import gae, last_token_index, length_adaptive_lam, next_kl, token_rewards
from .kl import KL_ESTIMATORS, kl_estimate
from .logprobs import logprobs_and_entropy
from .losses import approx_kl, explained_variance, kl_loss, outside_range, policy_loss, value_loss
from .masking import global_moments, masked_mean, masked_sum, whiten, whiten_with_scale

__all__ = [
    "KL_ESTIMATORS",
    "approx_kl",
    "explained_variance",
    "gae",
    "global_moments",
    "kl_estimate",
    "kl_loss",
    "last_token_index",
    "length_adaptive_lam",
    "logprobs_and_entropy",
    "masked_mean",
    "masked_sum",
    "next_kl",
    "outside_range",
    "policy_loss",
    "token_rewards",
    "value_loss",
    "whiten",
    "whiten_with_scale",
]
