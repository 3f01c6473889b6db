# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How far the sampling engine's log-probabilities are from those of the training path: weights, metrics, a guard."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trl_ext.objectives import masked_sum
from trl_ext.processes import Reduce

from .rollout import Rollout

STOP_FACTOR = 4  # times the limit at which a warning is given: the run stops
STALE_FACTOR = 2  # times the limits for a rollout from older weights, whose gap is what was learned since, too


@dataclass(frozen=True)
class GapOptions:
    """Options of the correction for the engine; fields as in `PPOConfig`.

    Attributes:
        same_distribution: Whether the engine samples from the distribution that is learned, without `top_p` and the
            like; only then is a gap a fault.
        merges_while_sampling: Whether the engine sampled from merged weights.
    """

    importance_sampling_cap: float
    mask_ratio_range: Sequence[float] | None
    max_engine_gap: float | None
    max_engine_capped: float | None
    same_distribution: bool
    merges_while_sampling: bool = False


def correct(
    rollout: Rollout,
    engine_logps: list[list[float]] | None,
    options: GapOptions,
    *,
    reduce: Reduce,
    step: int,
    stale: bool = False,
) -> dict[str, float]:
    """Fill in `weights`, and return the metrics of the gap.

    Args:
        rollout: With `old_logps` filled in.
        engine_logps: As in `importance_weights`.
        options: Cap, mask and limits.
        reduce: Sums a tensor over processes.
        step: Named in the messages.
        stale: Whether the policy has learned since the engine sampled.

    Raises:
        RuntimeError: when the engine gave no log-probabilities, or the gap is so large that it has not sampled from
            the policy.
    """
    if engine_logps is None:
        raise RuntimeError(
            "`generation_engine` returned no log-probabilities (`logps` of its completions), which "
            "`importance_sampling_correction` needs; let it return them, or set `importance_sampling_correction=False`."
        )
    cap, mask = options.importance_sampling_cap, rollout.completion_mask
    rollout.weights = importance_weights(rollout, engine_logps, cap=cap, ratio_range=options.mask_ratio_range)
    log_ratios = _log_ratios(rollout, engine_logps)
    capped = mask & (log_ratios > math.log(cap))
    gap, cut, tokens = reduce(torch.stack([masked_sum(log_ratios.abs(), mask), capped.sum(), mask.sum()])).tolist()
    gap, cut = gap / max(tokens, 1), cut / max(tokens, 1)
    if options.same_distribution:
        when: dict[str, Any] = {"step": step, "stale": stale, "merged": options.merges_while_sampling}
        _check(gap, options.max_engine_gap, "max_engine_gap", "the mean gap, in nats,", **when)
        _check(cut, options.max_engine_capped, "max_engine_capped", "the share of tokens with a capped weight", **when)
    return {"engine/logp_gap": gap, "engine/capped_fraction": cut}


def importance_weights(
    rollout: Rollout, engine_logps: list[list[float]], *, cap: float, ratio_range: Sequence[float] | None = None
) -> Tensor:
    """Return truncated importance weights, min(pi_old / pi_engine, cap), of the sampled tokens (Ionides 2008).

    Args:
        rollout: With `old_logps` filled in.
        engine_logps: Log-probabilities of the sampled tokens as the engine computed them, nats, one list per sample.
        cap: Upper bound: a finite variance at the price of a bias.
        ratio_range: Least and greatest pi_old / pi_engine that is learned from; other tokens get the weight 0. None:
            all are.

    Returns:
        Weights, shape (N, C); 1 outside the completion mask.
    """
    ratios = _log_ratios(rollout, engine_logps).clamp(max=20.0).exp()
    weights = ratios.clamp(max=cap)
    if ratio_range is not None:
        weights = weights.where((ratios >= ratio_range[0]) & (ratios <= ratio_range[1]), 0.0)
    return torch.where(rollout.completion_mask, weights, 1.0)


def _log_ratios(rollout: Rollout, engine_logps: list[list[float]]) -> Tensor:
    """Return log pi_old - log pi_engine, (N, C), of the sampled tokens; something finite after them."""
    width = rollout.completion_length
    padded = torch.tensor([row + [0.0] * (width - len(row)) for row in engine_logps])
    return rollout.old_logps - padded.to(rollout.old_logps)


def _check(value: float, limit: float | None, setting: str, what: str, *, step: int, stale: bool, merged: bool) -> None:
    if limit is None:
        return
    bound = f"`{setting}` {limit}"
    if stale:
        limit *= STALE_FACTOR
        why = "since `async_rollouts` sampled before the last learning"
        bound = f"{limit:g}, which is {STALE_FACTOR} times `{setting}` {why}"
    if value <= limit:
        return
    start = (
        f"Step {step}: between the log-probabilities of the sampling engine and of the policy, {what} is {value:.3g}"
    )
    if value > STOP_FACTOR * limit:
        reason = "the engine has not sampled from this policy; "
        reason += "give both the same model and dtype, or sample with `generate`"
        if merged:
            reason = "the base's dtype is too coarse for merged weights; leave `merge_adapters_while_sampling` out"
        raise RuntimeError(f"{start}, more than {STOP_FACTOR} times {bound}: {reason}.")
    remedy = "give engine and policy the same dtype"
    if merged:
        remedy = "leave `merge_adapters_while_sampling` out"
    elif stale:
        remedy = "lower `learning_rate` or `num_ppo_epochs`"
    warnings.warn(f"{start}, more than {bound}; {remedy} (the run stops at {STOP_FACTOR} times that).", stacklevel=4)
