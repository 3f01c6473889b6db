# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""From scores to advantages: token rewards, generalized advantage estimation, length-adaptive lambda."""

import torch
from torch import Tensor

from .masking import at_least_float32, select


def last_token_index(mask: Tensor) -> Tensor:
    """Return the index of the last token that counts.

    Args:
        mask: (B, C).

    Returns:
        (B,) int64; -1 for a row without tokens.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    indices = torch.where(mask.bool(), positions, torch.full_like(positions, -1))
    return torch.nn.functional.pad(indices, (1, 0), value=-1).amax(dim=1)


def token_rewards(
    scores: Tensor, kl: Tensor, kl_coef: float, mask: Tensor, token_scores: Tensor | None = None
) -> Tensor:
    """Spread scores over a completion: -kl_coef * kl and its own score on every token, the completion's on the last.

    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, with the KL per token.

    Args:
        scores: (B,), one score a completion.
        kl: (B, C), nats per token (k1, see `kl_estimate`; or `gamma * next_kl`).
        kl_coef: the coefficient in use.
        mask: (B, C), the tokens that the policy sampled.
        token_scores: (B, C), scores of single tokens (dense or process rewards); None without.

    Returns:
        (B, C), 0 outside the mask. The score of a completion without tokens is dropped: no action earned it.

    Raises:
        ValueError: the shapes do not fit.
    """
    if kl.shape != mask.shape or scores.shape != mask.shape[:1]:
        raise ValueError(
            f"scores {tuple(scores.shape)}, kl {tuple(kl.shape)} and mask {tuple(mask.shape)} do not fit; "
            "pass (B,), (B, C) and (B, C)."
        )
    positions = torch.arange(mask.shape[1], device=mask.device)
    is_last = positions == last_token_index(mask).unsqueeze(1)
    earned = select(scores.unsqueeze(1).expand_as(kl), is_last)
    if token_scores is not None:
        if token_scores.shape != mask.shape:
            raise ValueError(f"token_scores {tuple(token_scores.shape)} does not fit mask {tuple(mask.shape)}.")
        earned = earned + select(token_scores, mask)
    return select(-kl_coef * at_least_float32(kl), mask) + earned


def next_kl(kl: Tensor, mask: Tensor) -> Tensor:
    """Return the KL at the state that each token leads to: that of the next token inside the mask.

    A token does not change the KL at the state in which it was chosen, but it decides which state comes next. After
    the last token there is no state whose KL is paid.

    Args:
        kl: (B, C), the KL at the state before each token.
        mask: (B, C), the tokens that the policy sampled.

    Returns:
        (B, C), 0 at the last token and outside the mask.
    """
    kl, mask = at_least_float32(kl), mask.bool()
    shifted, following = torch.zeros_like(kl), kl.new_zeros(len(kl))
    for t in reversed(range(kl.shape[1])):
        shifted[:, t] = following
        following = torch.where(mask[:, t], kl[:, t], following)
    return select(shifted, mask)


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float | Tensor,
    bootstrap_values: Tensor | None = None,
) -> Tensor:
    """Return advantages by GAE (Schulman et al. 2016, arXiv 1506.02438, eq. 16) over sequences with holes.

    `delta_t = r_t + gamma * V_{t+1} - V_t` and `A_t = delta_t + gamma * lam * A_{t+1}`, where t+1 is the next token
    inside the mask: a hole takes no step, is not discounted, and carries value and advantage across unchanged.
    The returns that a critic learns are `advantages + values` inside the mask. Advantages carry no gradient.

    Args:
        rewards: (B, C).
        values: (B, C), V of the state in which each token was chosen.
        mask: (B, C).
        gamma: discount per token.
        lam: lambda, one for all or (B,).
        bootstrap_values: (B,), V of the state after the last token. 0 for a completion that terminated, the critic's
            value for one that was cut off. None: 0 for all.

    Returns:
        (B, C), 0 outside the mask.

    Raises:
        ValueError: the shapes do not fit.
    """
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask {tuple(mask.shape)} differ; "
            "all must be (B, C)."
        )
    for name, given in (("lam", lam), ("bootstrap_values", bootstrap_values)):
        if isinstance(given, Tensor) and given.dim() > 0 and given.shape != mask.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(given.shape)}; pass one number a row, ({mask.shape[0]},).")

    rewards, values, mask = at_least_float32(rewards), at_least_float32(values), mask.bool()
    zeros = values.new_zeros(values.shape[0])
    next_value = zeros if bootstrap_values is None else bootstrap_values.to(values)
    next_advantage = zeros
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = next_advantage
    return select(advantages, mask)


def length_adaptive_lam(lengths: Tensor, alpha: float) -> Tensor:
    """Return a lambda that grows with the length of the completion: `lam = 1 - 1 / (alpha * length)`, within [0, 1].

    VAPO (Yue et al. 2025, arXiv 2504.05118): the weights of GAE then sum to alpha * length, so that the reward at the
    end reaches the start of a long completion too. Their alpha is 0.05, made for thousands of tokens: up to
    1 / alpha tokens lambda is 0, so raise alpha for short completions.

    Args:
        lengths: (B,), tokens per completion.
        alpha: share of the completion over which credit spreads.

    Returns:
        (B,) float32; 0 for an empty completion.

    Raises:
        ValueError: `alpha` is not positive.
    """
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; the length-adaptive lambda needs alpha > 0 (VAPO uses 0.05).")
    return (1.0 - 1.0 / (alpha * at_least_float32(lengths))).clamp(0.0, 1.0)
