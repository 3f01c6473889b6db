# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""An actor-critic from the arguments of a trainer."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel

from .adapters import add_policy_adapter, check_new_adapter, on_modules, with_rank
from .loading import check_roles, has_adapter, load_policy, policy_config
from .model import ActorCritic
from .saved_critic import find_saved_critic


def build_actor_critic(
    model: str | PreTrainedModel | PeftModel | ActorCritic,
    critic: str = "head",
    *,
    peft_config: PeftConfig | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    critic_lora_rank: int | None = None,
    critic_target_modules: Sequence[str] | None = None,
    num_critics: int = 1,
    reward_adapters: Sequence[str | os.PathLike] = (),
    sum_reward_models: bool = True,
    init_kwargs: dict[str, Any] | None = None,
    device: torch.device | None = None,
) -> ActorCritic:
    """Build an [`ActorCritic`] from the arguments of a trainer.

    Args:
        model: Name, folder or object; an `ActorCritic` is returned unchanged.
        critic: As in `ActorCritic`; "head", the default, for an `ActorCritic`, or the kind of critic that it has.
        num_critics: As in `ActorCritic`.
        reward_adapters: As in `ActorCritic`.
        sum_reward_models: As in `ActorCritic`.
        peft_config: Configuration of the policy's new adapter.
        quantization_config: Quantization of a policy given by name.
        critic_lora_rank: Rank of the critic's adapter; None: the actor's.
        critic_target_modules: Layers of the critic's adapter, as `on_modules` takes them; None: the actor's.
        init_kwargs: Keyword arguments of `from_pretrained`.
        device: Device for models given by name.

    Raises:
        ValueError: when two arguments contradict each other, or as `ActorCritic` raises.
    """
    if isinstance(model, ActorCritic):
        given = (peft_config, quantization_config, critic_lora_rank, critic_target_modules, reward_adapters)
        if any(given) or num_critics not in (1, model.num_critics):
            raise ValueError(
                "`model` is an ActorCritic; make it with `peft_config`, `quantization_config`, `critic_lora_rank`, "
                "`critic_target_modules`, `num_critics` and `reward_adapters`, and leave them out here."
            )
        if critic != "head" and (kind := _kind(critic)) != model.critic_kind:  # "head" is the default, as if left out
            raise ValueError(
                f"`critic` is {critic!r}, and `model` is an ActorCritic with a critic of kind {model.critic_kind!r}, "
                f"not {kind!r}; make it with the critic that it is to have, or leave `critic` out here."
            )
        return model
    init_kwargs = dict(init_kwargs or {})
    if quantization_config is not None:
        if not isinstance(model, str):
            raise ValueError("`quantization_config` needs `model` by name; leave it out for a loaded model.")
        init_kwargs["quantization_config"] = quantization_config
    with_adapters = has_adapter(model, init_kwargs)
    if peft_config is not None:
        check_new_adapter(peft_config, with_adapters)
        with_adapters = True
    config = policy_config(model, init_kwargs)
    check_roles(critic, reward_adapters, config, with_adapters=with_adapters, init_kwargs=init_kwargs)
    own = {"critic_lora_rank": critic_lora_rank, "critic_target_modules": critic_target_modules}
    for option, value in (own | {"num_critics": None if num_critics == 1 else num_critics}).items():
        if value is not None and critic != "adapter":
            raise ValueError(f"`{option}` {value} needs `critic='adapter'`; leave it out otherwise.")
    policy = load_policy(model, trained=peft_config is None, device=device, **init_kwargs)
    reference_is_base = False
    if peft_config is not None:
        policy, reference_is_base = add_policy_adapter(policy, peft_config)
    critic_peft_config = None
    if critic == "adapter" and isinstance(policy, PeftModel):
        critic_peft_config = policy.peft_config[policy.active_adapter]
        if critic_lora_rank is not None:
            critic_peft_config = with_rank(critic_peft_config, critic_lora_rank)
        if critic_target_modules is not None:
            critic_peft_config = on_modules(critic_peft_config, policy, critic_target_modules)
    return ActorCritic(
        policy,
        critic,
        reference_is_base=reference_is_base,
        critic_peft_config=critic_peft_config,
        num_critics=num_critics,
        reward_adapters=reward_adapters,
        sum_reward_models=sum_reward_models,
        init_kwargs=init_kwargs,
        device=device,
    )


def _kind(critic: str) -> str:
    """Return which `critic_kind` a choice of `critic` leads to."""
    saved = find_saved_critic(critic)
    return saved.kind if saved else critic if critic in ("head", "adapter") else "model"
