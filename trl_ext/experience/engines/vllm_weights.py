# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The policy's weights as vLLM reads them: a base in a folder, named tensors, or a LoRA adapter alone in a folder."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from trl_ext.actor_critic.adapters import ADAPTER_WEIGHTS, plain_config

_QUANTIZER = "vllm-bnb-plugin"  # without which vLLM has no bitsandbytes
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM's `max_lora_rank` may be
# What a LoRA configuration may not have, since vLLM would leave it out, with the value that means "none".
_LEFT_OUT: dict[str, Any] = {
    "use_dora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
}
_LEFT_OUT |= {"target_parameters": None, "layer_replication": None, "rank_pattern": {}, "alpha_pattern": {}}


def adapter_name(model: PreTrainedModel) -> str | None:
    """Return the name of the active adapter of a model, or None for a model without adapters."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return next((layer.active_adapters[0] for layer in layers), None)


def largest_rank(model: PreTrainedModel) -> int | None:
    """Return the `max_lora_rank` that holds the model's adapter; None for a model without adapters.

    Raises:
        ValueError: for an adapter that vLLM cannot apply.
    """
    name = adapter_name(model)
    if name is None:
        return None
    config: Any = model.peft_config[name]
    if not isinstance(config, LoraConfig):
        raise ValueError(f"`use_vllm` takes LoRA adapters, and none of {type(config).__name__}; leave `use_vllm` out.")
    for field, none in _LEFT_OUT.items():
        if (getattr(config, field, None) or none) != none:
            raise ValueError(
                f"`use_vllm` takes no LoRA adapter with `{field}`, which vLLM would not apply; leave one of them out."
            )
    if config.r > _RANKS[-1]:
        raise ValueError(f"`use_vllm` takes a LoRA rank of at most {_RANKS[-1]}, got {config.r}; lower it.")
    return next(rank for rank in _RANKS if rank >= config.r)


def quantization(model: PreTrainedModel) -> str | None:
    """Return the name that vLLM has for the quantization of a model; None for a model without.

    Raises:
        ValueError: for a quantization of another kind than bitsandbytes' 4 bits, or without vLLM's plugin for it.
    """
    if getattr(model, "quantization_method", None) is None:
        return None
    if not getattr(model, "is_loaded_in_4bit", False) or not model.config.name_or_path:
        raise ValueError(
            "`use_vllm` takes a quantized `model` by name and in 4 bits (bitsandbytes) alone, and quantizes its own "
            "copy; sample with `generate`."
        )
    try:
        importlib.metadata.version(_QUANTIZER)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"`use_vllm` with a 4-bit `model` needs `pip install {_QUANTIZER}`.") from None
    return "bitsandbytes"


def named_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's own weights under their names in a checkpoint, without adapters; tied weights come once."""
    own = {
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in model.named_parameters()
        if "lora_" not in name
    }
    yield from revert_weight_conversion(model, own).items()


def save_base(model: PreTrainedModel, folder: Path) -> None:
    """Write a model without its adapters into a folder, from which vLLM loads it."""
    own = {name.replace(".base_layer.", "."): t for name, t in model.state_dict().items() if "lora_" not in name}
    model.save_pretrained(folder, state_dict=own)


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the active adapter of a model into a folder, as vLLM reads it.

    Initialisations that change the base (PiSSA, OLoRA) are not recorded: `save_base` has saved the changed base.
    """
    name = adapter_name(model)
    assert name is not None
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    folder.mkdir(parents=True)
    tensors = {f"base_model.model.{key}": tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    plain_config(model.peft_config[name]).save_pretrained(folder)


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype that the model computes in: that of autocast, if it is on, or of its weights."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
