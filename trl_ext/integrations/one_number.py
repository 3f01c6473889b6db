# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""TRL's GRPOTrainer and RLOOTrainer take one number a completion: a clear word where a function gives token rewards."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch.nn import Module

from trl_ext.rewards import SentenceReward, reward_name
from trl_ext.rewards.base import is_async
from trl_ext.rewards.tokens import refuse_token_rewards


def require_numbers(trainer: Any) -> None:
    """Let a trainer of TRL refuse token rewards by the function's name, in place of an error about tensors.

    Functions that always give them are refused now, all others at their first such result.

    Args:
        trainer: A GRPOTrainer or RLOOTrainer, whose `reward_funcs` are wrapped; its models stay as they are.

    Raises:
        RewardTypeError: one of the functions gives token rewards.
    """
    host = type(trainer).__name__
    for fn in trainer.reward_funcs:
        if isinstance(fn, SentenceReward):
            refuse_token_rewards(reward_name(fn), [[]], host)
    trainer.reward_funcs = [
        fn if isinstance(fn, Module) or not callable(fn) else _checked(fn, host) for fn in trainer.reward_funcs
    ]


def _checked(fn: Callable, host: str) -> Callable:
    """Return a reward function with the result of `fn`, which is refused if it has token rewards."""
    name = reward_name(fn)

    def read(rewards: Any) -> Any:
        if isinstance(rewards, Iterator):  # which TRL takes, and which can be read once
            rewards = list(rewards)
        refuse_token_rewards(name, rewards, host)
        return rewards

    @functools.wraps(fn, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        return read(fn(*args, **kwargs))

    @functools.wraps(fn, updated=())
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        return read(await fn(*args, **kwargs))

    return call_async if is_async(fn) else call
