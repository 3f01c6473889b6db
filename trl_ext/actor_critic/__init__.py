# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One backbone, several roles: actor, critic and reference."""

from .loading import add_policy_adapter
from .model import ActorCritic, Evaluation, build_actor_critic

__all__ = ["ActorCritic", "Evaluation", "add_policy_adapter", "build_actor_critic"]
