# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How many completions to sample at a time: as many as `trl_ext plan` says, from the same plan."""

from typing import Any, get_args, get_type_hints

import torch
from peft import PeftModel
from transformers.utils import logging

from .actor_critic import ActorCritic
from .checks.training_arguments import checkpointing_kwargs
from .config import SAMPLED_AT_A_TIME, PPOConfig
from .planner.plan import GIB, sampling_batch
from .planner.setup import Setup

logger = logging.get_logger(__name__)

PROMPT = 512  # tokens of a prompt where `max_prompt_length` does not say


def sampled_at_a_time(args: PPOConfig, model: ActorCritic) -> int:
    """Return the completions that this process samples at a time where `local_rollout_forward_batch_size` is 0.

    The size follows from settings and card alone, not from the memory that is free at the moment: random numbers are
    drawn batch by batch, and a resumed run samples the completions of one that was not interrupted.
    """
    if model.device.type != "cuda":
        return min(SAMPLED_AT_A_TIME, args.local_batch_size)
    card = torch.cuda.get_device_properties(model.device).total_memory / GIB
    try:
        return sampling_batch(model.config, setup_of(args, model), card)
    except ValueError as error:
        logger.warning(
            f"`local_rollout_forward_batch_size` 0 is taken as {SAMPLED_AT_A_TIME}: {error} To choose another number, "
            "set it."
        )
        return SAMPLED_AT_A_TIME


def setup_of(args: PPOConfig, model: ActorCritic) -> Setup:
    """Return the planner's settings of a run.

    Raises:
        ValueError: for a run that the planner does not know, such as LoRA with a critic that is another model.
    """
    policy, lm = model.policy, model.causal_lm
    values: dict[str, Any] = {
        "critic": "copy" if model.critic_kind == "model" else model.critic_kind,
        "quantization": _quantization(lm),
        "prompt": args.max_prompt_length or PROMPT,
        "completion": args.max_completion_length,
        "micro_batch": args.micro_batch_size,
        "rank": policy.peft_config[model.actor_adapter].r if isinstance(policy, PeftModel) else 0,
        "critic_rank": args.critic_lora_rank,
        "reward_adapters": len(model.reward_models),
        "reference_adapter": model.reference_adapter is not None,
        "policy_ema": args.policy_ema_decay is not None,
        "rollout": args.local_batch_size,
        "dtype": "bfloat16" if args.bf16 or args.fp16 or lm.dtype != torch.float32 else "float32",
        "every_n_layers": checkpointing_kwargs(args).get("every_n_layers", 1),
    }
    names = ("num_critics", "kl_estimator", "logits_chunk_size", "gradient_checkpointing")
    values |= {name: getattr(args, name) for name in names}
    if not args.gradient_checkpointing:
        del values["every_n_layers"]
    optimizer = getattr(args.optim, "value", args.optim)
    # Of an optimizer that the planner does not know, the state is taken to be AdamW's.
    known = get_args(get_type_hints(Setup)["optimizer"])
    values["optimizer"] = optimizer if optimizer in known else "adamw_torch"
    return Setup(**values)


def _quantization(model: Any) -> str:
    if getattr(model, "is_loaded_in_4bit", False):
        return "nf4"
    return "int8" if getattr(model, "is_loaded_in_8bit", False) else "none"
