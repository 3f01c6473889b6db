# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models by name or object, with the mistakes people make turned into one sentence."""

import copy
import dataclasses
import importlib.util
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .trunk import ValueHead, causal_lm, check_causal

# Adapters that leave the model's function unchanged when they are made, so that the base is the initial policy.
_IDENTITY_INITS = (True, "gaussian", "orthogonal")


def load_policy(model: str | nn.Module, **init_kwargs: Any) -> PreTrainedModel | PeftModel:
    """
    The policy: a causal LM by name, folder or object.

    Args:
        model: Name or folder of a causal LM, or the loaded model, with or without PEFT adapters.
        init_kwargs: Keyword arguments of `from_pretrained`; the dtype defaults to the checkpoint's own.

    Raises:
        TypeError: when `model` is neither a name nor a transformers or PEFT model.
        ValueError: when it is not a causal LM.
        ImportError: when it is to be quantized and bitsandbytes is not installed.
    """
    if isinstance(model, str):
        config = AutoConfig.from_pretrained(model, trust_remote_code=init_kwargs.get("trust_remote_code", False))
        known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
        names = config.architectures or []
        # Remote code brings architectures that transformers does not know.
        if names and not known.intersection(names) and not getattr(config, "auto_map", None):
            raise ValueError(
                f"`model` {model!r} is a {names[0]}, not a causal language model; give one that generates text."
            )
        if init_kwargs.get("quantization_config") is not None and importlib.util.find_spec("bitsandbytes") is None:
            raise ImportError("Quantization needs bitsandbytes; install it with `pip install 'trl_ext[quantization]'`.")
        policy = AutoModelForCausalLM.from_pretrained(model, **{"dtype": "auto", **init_kwargs})
        keep_differentiable(policy)
        return policy
    if not isinstance(model, (PreTrainedModel, PeftModel)):
        raise TypeError(f"`model` must be a name, a transformers model or a PEFT model, got {type(model).__name__}.")
    inner = causal_lm(model)
    if inner.config.is_encoder_decoder or not inner.can_generate() or inner.get_output_embeddings() is None:
        raise ValueError(
            f"`model` is a {type(inner).__name__}, not a causal language model; give one that generates text."
        )
    keep_differentiable(inner)
    return model


def keep_differentiable(model: PreTrainedModel) -> None:
    """
    Keep 4-bit layers on a CPU in the one layout that gradients pass through.

    In eval mode bitsandbytes repacks their weights for its AVX-512 kernel and rounds the scales. The layers stay that
    way in training mode, where the kernel has no backward pass: whatever lies below silently gets no gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.state_dict()  # brings a layer back that was repacked before


def compute_dtype(model: PreTrainedModel) -> torch.dtype | None:
    """Dtype that a quantized model computes in; None for a model that is not quantized."""
    if not getattr(model, "is_quantized", False):
        return None
    return getattr(model.config.quantization_config, "bnb_4bit_compute_dtype", None) or model.dtype


def add_policy_adapter(model: nn.Module, peft_config: PeftConfig) -> tuple[PeftModel, bool]:
    """
    Wrap the policy in its LoRA adapter: on every linear layer but the head, unless `target_modules` says otherwise.

    Returns:
        The PEFT model, and whether the policy is still exactly the base (False for DoRA, for PiSSA and other
        initialisations that start elsewhere; the reference then needs an adapter of its own).

    Raises:
        TypeError, ValueError: for something that is not a `PeftConfig`, a model that has adapters already, or layers
            that it does not have.
    """
    if not isinstance(peft_config, PeftConfig):
        raise TypeError(
            f"`peft_config` must be a PeftConfig (e.g. `peft.LoraConfig`), got {type(peft_config).__name__}."
        )
    if isinstance(model, PeftModel):
        raise ValueError(
            "`model` has PEFT adapters already, so `peft_config` has no place: leave it out to train the present "
            "adapter, or merge it first (`model.merge_and_unload()`)."
        )
    if getattr(peft_config, "target_modules", ()) is None:
        peft_config = dataclasses.replace(peft_config, target_modules="all-linear")
    starts_at_base = getattr(peft_config, "init_lora_weights", True) in _IDENTITY_INITS
    if getattr(peft_config, "use_dora", False):
        starts_at_base = False  # it scales each layer by a quotient of norms, which is 1 only up to rounding
    try:
        return get_peft_model(model, peft_config), starts_at_base
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise
        linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raise ValueError(
            f"`target_modules` {peft_config.target_modules} are no layers of this {type(model).__name__}; its linear "
            f"layers are {', '.join(sorted(linear))}, and 'all-linear' means all of them but the head."
        ) from error


def with_rank(config: PeftConfig, rank: int) -> PeftConfig:
    """
    A LoRA configuration with another rank and the same scale of its update.

    Raises:
        ValueError: when the adapter is of a kind that has no rank.
    """
    if not isinstance(config, LoraConfig):
        raise ValueError(f"`critic_lora_rank` is for LoRA; {type(config).__name__} has no rank.")
    growth = rank / config.r
    alpha = config.lora_alpha * (growth**0.5 if config.use_rslora else growth)
    return dataclasses.replace(config, r=rank, lora_alpha=alpha, rank_pattern={}, alpha_pattern={})


def check_adapter(config: PeftConfig, name: str, taken: tuple[str, ...]) -> None:
    """
    Check that turning the policy's adapter off gives the base back, and that others can be added beside it.

    Args:
        config: Its configuration.
        name: Its name.
        taken: The names of those others.

    Raises:
        ValueError: for prompt learning, which has no layers to switch, for trained biases, which the base keeps, and
            for a name that is taken.
    """
    if name in taken:
        raise ValueError(
            f"The policy's adapter is called '{name}', as one that is added here; load it under another name "
            "(`adapter_name='sft'`)."
        )
    if config.is_prompt_learning:
        raise ValueError(f"{type(config).__name__} adds tokens and no adapter layers; use LoRA (`peft.LoraConfig`).")
    if getattr(config, "bias", "none") != "none":
        raise ValueError(
            f"`bias={config.bias!r}` in the adapter's configuration trains biases of the base, which is the reference; "
            "use `bias='none'`."
        )


def load_critic(
    critic: str | PreTrainedModel, policy: nn.Module, **init_kwargs: Any
) -> tuple[PreTrainedModel, ValueHead]:
    """
    A separate critic: its trunk and its value head.

    A reward model (a sequence classifier with one label) also gives the head its weights; any other model starts with
    a head at zero.

    Args:
        critic: `"copy"` for a copy of the policy, a name or folder, or a loaded model.
        policy: The policy, whose tokenizer the critic shares.

    Raises:
        ValueError: when the critic cannot read the policy's tokens, is an encoder or a classifier with several labels.
    """
    if isinstance(critic, str) and critic == "copy":
        if isinstance(policy, PeftModel):
            raise ValueError("`critic='copy'` copies a whole model; with adapters use `critic='adapter'` or 'head'.")
        model = copy.deepcopy(causal_lm(policy))
    elif isinstance(critic, str):
        config = AutoConfig.from_pretrained(critic, trust_remote_code=init_kwargs.get("trust_remote_code", False))
        is_classifier = any("ForSequenceClassification" in name for name in config.architectures or [])
        auto = AutoModelForSequenceClassification if is_classifier else AutoModel
        model = auto.from_pretrained(critic, **{"dtype": "auto", **init_kwargs})
    else:
        model = critic
    vocabularies = [m.get_input_embeddings().num_embeddings for m in (model, causal_lm(policy))]
    if vocabularies[0] < vocabularies[1]:
        raise ValueError(
            f"`critic` knows {vocabularies[0]} tokens and the policy {vocabularies[1]}: they must share a tokenizer; "
            "a reward model with another one belongs in `reward_funcs`."
        )
    trunk = model.base_model
    keep_differentiable(trunk)
    check_causal(trunk)
    value_head = ValueHead(model.config.get_text_config().hidden_size)
    score = getattr(model, "score", None) or getattr(model, "classifier", None)
    if isinstance(score, nn.Linear):
        if score.out_features != 1:
            raise ValueError(
                f"`critic` has {score.out_features} labels; a critic starts from a reward model with one, or from a "
                "language model."
            )
        value_head.weight.data.copy_(score.weight.data)
        if score.bias is not None:
            value_head.bias.data.copy_(score.bias.data)
    return trunk, value_head
