# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The engine that samples, as the settings ask for it; how many at a time is what `trl_ext plan` says."""

from inspect import signature
from typing import Any, get_args, get_type_hints

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .actor_critic import ActorCritic
from .actor_critic.caches import check_static_cache
from .actor_critic.merged import check_merges
from .checks.training_arguments import checkpointing_kwargs, mapping
from .config import SAMPLED_AT_A_TIME, PPOConfig
from .experience.engines import ENGINES, GenerationEngine, MergedEngine, eos_token_ids
from .planner.plan import GIB, sampling_batch
from .planner.setup import Setup

logger = logging.get_logger(__name__)

PROMPT = 512  # tokens of a prompt where `max_prompt_length` does not say


def build_engine(args: PPOConfig, model: ActorCritic, tokenizer: PreTrainedTokenizerBase) -> GenerationEngine:
    """Return the engine that `args` asks for.

    Raises:
        ValueError: when the policy's adapter cannot be merged into its base, and is to be; when the policy
            does not sample the same with a static cache, and is to have one.
    """
    if args.cache_implementation == "static":
        check_static_cache(model.causal_lm)
    values: dict[str, Any] = {
        "eos_token_ids": eos_token_ids(model.causal_lm, tokenizer),
        "max_new_tokens": args.max_completion_length,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "stop_strings": args.stop_strings,
        "batch_size": args.local_rollout_forward_batch_size or sampled_at_a_time(args, model),
        "return_logps": args.corrects_for_engine,
        "cache_implementation": args.cache_implementation,
        "generation_kwargs": mapping(args.generation_kwargs),
        "model": model.causal_lm,
        "max_model_length": args.max_prompt_length and args.max_prompt_length + args.max_completion_length,
        "config": mapping(getattr(args, f"{args.engine}_config", None)),
    }
    engine = ENGINES[args.engine]
    parameters = signature(engine).parameters
    values |= {
        name: value for name in parameters if (value := getattr(args, f"{args.engine}_{name}", None)) is not None
    }
    made = engine(tokenizer, **{name: values[name] for name in values if name in parameters})
    if not args.merges_while_sampling:
        return made
    check_merges(model.policy)
    return MergedEngine(made)


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
        ValueError: for a run that the planner does not know, such as LoRA with a critic that is another model, or an
            adapter without a rank.
    """
    policy, lm = model.policy, model.causal_lm
    values: dict[str, Any] = {
        "critic": "copy" if model.critic_kind == "model" else model.critic_kind,
        "quantization": _quantization(lm),
        "prompt": args.max_prompt_length or PROMPT,
        "completion": args.max_completion_length,
        "micro_batch": args.micro_batch_size,
        "rank": _rank(policy.peft_config[model.actor_adapter]) if isinstance(policy, PeftModel) else 0,
        "critic_rank": args.critic_lora_rank,
        "reward_adapters": len(model.reward_models),
        "reference_adapter": model.reference_adapter is not None,
        "policy_ema": args.policy_ema_decay is not None,
        "rollout": args.local_batch_size,
        "dtype": "bfloat16" if args.bf16 or args.fp16 or lm.dtype != torch.float32 else "float32",
        "every_n_layers": checkpointing_kwargs(args).get("every_n_layers", 1),
        "merge_adapters_while_sampling": args.merges_while_sampling,
    }
    names = ("num_critics", "kl_estimator", "logits_chunk_size", "gradient_checkpointing", "cache_implementation")
    values |= {name: getattr(args, name) for name in names}
    if not args.gradient_checkpointing:
        del values["every_n_layers"]
    optimizer = getattr(args.optim, "value", args.optim)
    # Of an optimizer that the planner does not know, the state is taken to be AdamW's.
    known = get_args(get_type_hints(Setup)["optimizer"])
    values["optimizer"] = optimizer if optimizer in known else "adamw_torch"
    return Setup(**values)


def _rank(adapter: PeftConfig) -> int:
    rank = getattr(adapter, "r", None)
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"The memory of an adapter without a rank ({type(adapter).__name__}) cannot be planned.")
    return rank


def _quantization(model: Any) -> str:
    if getattr(model, "is_loaded_in_4bit", False):
        return "nf4"
    return "int8" if getattr(model, "is_loaded_in_8bit", False) else "none"
