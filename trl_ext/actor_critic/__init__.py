# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One backbone, several roles: actor, critic, reference and reward."""

from .adapters import add_policy_adapter
from .build import build_actor_critic
from .model import ActorCritic, ForwardOutput
from .reward_adapter import AdapterRewardModel
from .reward_ensemble import load_reward_ensemble

__all__ = [
    "ActorCritic",
    "AdapterRewardModel",
    "ForwardOutput",
    "add_policy_adapter",
    "build_actor_critic",
    "load_reward_ensemble",
]
