# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Rewards of single tokens: one number for each of a completion's `completion_ids` in the place of one for all.

A number is the reward of the last token, and the reward of a completion is the sum over its tokens: `[0, ..., 0, s]`
and `s` are the same reward. Rules that are made for numbers read the sums so far, see `over_tokens`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Reward, RewardTypeError, RewardValueError


def reward_sum(reward: float | list[float]) -> float:
    """Return the reward of a whole completion: the number itself, or the sum over its tokens."""
    return math.fsum(reward) if isinstance(reward, list) else reward


def sums(rewards: Sequence[Reward]) -> list[float | None]:
    """Return the rewards of N completions as one number each; None stays None."""
    return [None if reward is None else reward_sum(reward) for reward in rewards]


def on_tokens(reward: float | list[float], length: int) -> list[float]:
    """Return a reward as a list of `length` numbers, at least one; a number is earned by the last token.

    Raises:
        RewardValueError: a list of another length.
    """
    if not isinstance(reward, list):
        return [0.0] * (length - 1) + [reward]
    if len(reward) != length:
        raise RewardValueError(
            f"The rewards of one completion cover {len(reward)} and {length} tokens: return one number for each of "
            "its `completion_ids`."
        )
    return reward


def _num_tokens(row: Sequence[float | list[float]]) -> int:
    """Return the number of tokens of a completion that one of its rewards tells; 0 if there are only numbers."""
    return next((len(reward) for reward in row if isinstance(reward, list)), 0)


def over_tokens(combine: Callable[[list[float]], float], row: Sequence[float | list[float]]) -> float | list[float]:
    """Combine the rewards of one completion by a rule for numbers, and credit its tokens.

    The rule is applied to the sums so far. A token earns what the combined reward has changed by, and the last token
    the rest: the sum over the tokens is the rule applied to the sums over all of them.

    Args:
        combine: K numbers to one.
        row: K rewards, numbers or lists.

    Returns:
        A number where all rewards are numbers, otherwise a list.
    """
    totals = [reward_sum(reward) for reward in row]
    length = _num_tokens(row)
    if length == 0:
        return combine(totals)
    steps = list(zip(*(on_tokens(reward, length) for reward in row), strict=True))
    so_far, earned = [0.0] * len(row), []
    before = combine(so_far)
    for step in steps[:-1]:
        if any(step):
            so_far = [total + reward for total, reward in zip(so_far, step, strict=True)]
            now = combine(so_far)
            earned.append(now - before)
            before = now
        else:
            earned.append(0.0)
    return [*earned, combine(totals) - math.fsum(earned)]


def weighted_sum(row: Sequence[float | list[float]], weights: Sequence[float]) -> float | list[float]:
    """Return the weighted sum of the rewards of one completion; token by token where one of them is a list."""
    length = _num_tokens(row)
    if length == 0:
        return sum(weight * reward_sum(reward) for weight, reward in zip(weights, row, strict=True))
    lists = [on_tokens(reward, length) for reward in row]
    return [sum(w * r for w, r in zip(weights, step, strict=True)) for step in zip(*lists, strict=True)]


def token_tensor(
    rewards: Sequence[Sequence[Reward]],
    lengths: Sequence[int],
    *,
    weights: Tensor,
    bounds: Tensor,
    clip_range: tuple[float, float] | None,
) -> Tensor:
    """Return the weighted sum of F functions' rewards of N completions, on the tokens that earn them.

    Args:
        rewards: N rewards of each function.
        lengths: Tokens of each completion.
        weights: (F,) float32.
        bounds: (F,) float32, from which the reward of a completion is counted (`Constraints`); 0 without.
        clip_range: Bounds of a completion's total; they limit the sums so far, as in `over_tokens`.

    Returns:
        (N, C) float32, C being the longest completion; 0 behind the end of each.
    """
    width = max(1, *lengths)
    tokens = torch.zeros(len(lengths), width, len(weights))
    for column, of_function in enumerate(rewards):
        for i, (reward, length) in enumerate(zip(of_function, lengths, strict=True)):
            if reward is not None and length > 0:
                tokens[i, :length, column] = torch.tensor(on_tokens(reward, length), dtype=torch.float32)
                tokens[i, length - 1, column] -= bounds[column]
    total = (tokens * weights).nansum(dim=2)  # as the totals are summed, to the last bit
    if clip_range is None:
        return total
    low, high = clip_range
    for i, length in enumerate(lengths):
        if length > 0:
            clipped = over_tokens(lambda row: min(max(row[0], low), high), [total[i, :length].tolist()])
            total[i, :length] = torch.tensor(clipped)
    return total


def check_host(name: str, services: Mapping[str, Any], rewards: Sequence[Reward]) -> None:
    """Refuse token rewards where TRL's own trainers call, which take one number a completion.

    Those pass `trainer_state` to reward functions, and no `on_progress`.

    Raises:
        RewardTypeError: there are some.
    """
    if "trainer_state" in services and "on_progress" not in services:
        refuse_token_rewards(name, rewards, "TRL's trainer")


def refuse_token_rewards(name: str, rewards: Sequence[Any], host: str) -> None:
    """Refuse token rewards in the result of reward function `name`.

    Raises:
        RewardTypeError: there are some.
    """
    if any(isinstance(reward, list | tuple) or getattr(reward, "ndim", 0) for reward in rewards):
        raise RewardTypeError(
            f"Reward function '{name}' gives token rewards, and {host} takes one number a completion: wrap the "
            "function in `Summed`, or train with `trl_ext.PPOTrainer`."
        )
