# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The two ways to hold actor, critic, reference and reward: on one base, and as four models."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.actor_critic.trunk import causal_lm
from trl_ext.planner.setup import Setup
from trl_ext.rewards import PreferenceReward

from .random_models import random_model, save_reward_adapter

Arrangement = tuple[ActorCritic, list[Any]]


def _random(config: PretrainedConfig, setup: Setup, device: str, reward: bool = False) -> PreTrainedModel:
    dtype = getattr(torch, setup.dtype)
    # A copy, because quantization leaves its mark in a configuration.
    config = copy.deepcopy(config)
    return random_model(config, quantization=setup.quantization, dtype=dtype, device=device, reward=reward)


def _lora(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")


def one_base(config: PretrainedConfig, setup: Setup, device: str, folder: Path) -> Arrangement:
    """Build all roles on one base, as `setup` says.

    Args:
        config: The architecture.
        setup: The run.
        device: "cuda" or "cpu".
        folder: Where reward adapters can be written.

    Returns:
        The actor-critic, and the reward models that are not part of it.
    """
    policy: Any = _random(config, setup, device)
    folders = [
        save_reward_adapter(copy.deepcopy(config), folder / str(i), setup.rank) for i in range(setup.reward_adapters)
    ]
    if setup.reference_adapter:
        policy = get_peft_model(policy, _lora(setup.rank))
    actor_critic = build_actor_critic(
        policy,
        setup.critic,
        peft_config=_lora(setup.rank) if setup.rank and not setup.reference_adapter else None,
        critic_lora_rank=setup.critic_rank if setup.critic == "adapter" else None,
        num_critics=setup.num_critics,
        reward_adapters=[str(path) for path in folders],
    )
    return actor_critic, []


def four_models(config: PretrainedConfig, setup: Setup, device: str, folder: Path) -> Arrangement:
    """Build actor, critic, reference and reward as four models, actor and critic with LoRA of the same ranks.

    This is what TRL's PPO held, each model quantized as in `setup`. Arguments and result are those of `one_base`.
    """
    actor_critic = build_actor_critic(_random(config, setup, device), "head", peft_config=_lora(setup.rank))
    critic = get_peft_model(_random(config, setup, device), _lora(setup.critic_rank or setup.rank))
    for name, parameter in critic.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(_adapter_dtype(actor_critic))
    actor_critic.critic, actor_critic.critic_kind = causal_lm(critic).base_model, "model"
    actor_critic.reference = _random(config, setup, device)
    return actor_critic, [_random(config, setup, device, reward=True)]


def _adapter_dtype(actor_critic: ActorCritic) -> torch.dtype:
    return next(p.dtype for name, p in actor_critic.policy.named_parameters() if "lora_" in name)


def weights_by_role(actor_critic: ActorCritic, reward_funcs: list[Any]) -> dict[str, int]:
    """Return the bytes of parameters by role, scales of quantized ones included."""
    roles: dict[str, int] = {}
    whole = nn.ModuleDict({"actor_critic": actor_critic})
    for i, function in enumerate(reward_funcs):
        if isinstance(function, PreferenceReward):
            whole[f"reward{i}"] = function.scorer.model
    for name, parameter in whole.named_parameters():
        role = _role(name)
        roles[role] = roles.get(role, 0) + sum(tensor.nbytes for tensor in _tensors(whole, name, parameter))
    return roles


def _tensors(whole: nn.Module, name: str, parameter: Tensor) -> list[Tensor]:
    """Return a parameter and the tensors that its quantization keeps beside it."""
    tensors: list[Any] = [parameter]
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        tensors += [state.absmax, state.code]
        tensors += [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    layer = whole.get_submodule(name.rpartition(".")[0])
    # Scales of 8-bit layers move from the weight to the layer's state at the first use.
    tensors += [getattr(parameter, "SCB", None), getattr(getattr(layer, "state", None), "SCB", None)]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def _role(name: str) -> str:
    parts = name.split(".")
    if "value_head" in parts:
        return "value head"
    adapter = next((part for part in parts if part in ("critic", "reference") or part.startswith("reward")), None)
    if "lora_" in name:
        return f"{(adapter or 'actor').rstrip('0123456789')} adapter"
    return adapter.rstrip("0123456789").replace("_models", "").replace("_model", "") if adapter else "base"
