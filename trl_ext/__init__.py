# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""PPO for language models, as an extension of Hugging Face TRL."""

from .actor_critic import ActorCritic
from .config import PPOConfig
from .kl_control import PIDKL, AdaptiveKL, FixedKL, KLController, ScheduledKL
from .rewards import PreferenceReward, ToxicityReward, check_reward
from .trainer import PPOTrainer

__all__ = [
    "ActorCritic",
    "AdaptiveKL",
    "FixedKL",
    "KLController",
    "PIDKL",
    "PPOConfig",
    "PPOTrainer",
    "PreferenceReward",
    "ScheduledKL",
    "ToxicityReward",
    "check_reward",
]

__version__ = "0.1.0"
