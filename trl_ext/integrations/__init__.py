# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The same rewards, KL controllers and actor-critics inside TRL's own trainers.

`trl_ext.integrations.trl_ppo` is for TRL's PPOTrainer (1.12 and older); import it by its full name.
"""

from .one_number import require_numbers
from .trl_online import KLControllerCallback
from .value_head import AutoModelForCausalLMWithValueHead

__all__ = ["AutoModelForCausalLMWithValueHead", "KLControllerCallback", "require_numbers"]
