# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Activation checkpointing that is switched on where memory turns out to be too small."""

from collections.abc import Mapping
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from .model import ActorCritic

__all__ = ["checkpoint_every_layer"]


def checkpoint_every_layer(model: ActorCritic, options: Mapping[str, Any]) -> bool:
    """Recompute the activations of every layer of policy and critic in backward passes from now on.

    Gradients stay the same: what is recomputed has the same values, dropout included.

    Args:
        model: Policy and critic.
        options: `gradient_checkpointing_kwargs` of the run, of which `every_n_layers` no longer counts.

    Returns:
        Whether there was a layer that kept its activations until now, and policy and critic support checkpointing.
    """
    parts = [part for part in (model.causal_lm, model.critic) if part is not None]
    layers = [m for part in parts for m in part.modules() if isinstance(m, GradientCheckpointingLayer)]
    if all(layer.gradient_checkpointing for layer in layers):
        return False
    if not all(part.supports_gradient_checkpointing for part in parts):
        return False
    model.gradient_checkpointing_enable({name: value for name, value in options.items() if name != "every_n_layers"})
    return True
