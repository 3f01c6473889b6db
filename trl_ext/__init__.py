# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""PPO for language models, as an extension of Hugging Face TRL.

Names are imported when they are first used: `trl_ext --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actor_critic import ActorCritic
    from .config import PPOConfig
    from .kl_control import PIDKL, AdaptiveKL, FixedKL, KLController, ScheduledKL
    from .rewards import PreferenceReward, ToxicityReward, check_reward
    from .trainer import PPOTrainer

_HOMES = {
    "ActorCritic": "actor_critic",
    "AdaptiveKL": "kl_control",
    "FixedKL": "kl_control",
    "KLController": "kl_control",
    "PIDKL": "kl_control",
    "PPOConfig": "config",
    "PPOTrainer": "trainer",
    "PreferenceReward": "rewards",
    "ScheduledKL": "kl_control",
    "ToxicityReward": "rewards",
    "check_reward": "rewards",
}
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


if not TYPE_CHECKING:  # a type checker then reports a name that is misspelt

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f".{_HOMES[name]}", __name__), name)
        if name in _HOMES.values():
            return import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
