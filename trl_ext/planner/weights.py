# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Resident memory of a run: weights, adapters and optimizer state, counted on a model without weights."""

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trl_ext.actor_critic.adapters import add_policy_adapter
from trl_ext.actor_critic.merged import merged_bytes
from trl_ext.actor_critic.trunk import modules_beside_text

# State of each parameter; torch's own AdamW has two moments in the parameter's dtype instead.
_BYTES_OF_STATE = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "paged_adamw_32bit": 8, "sgd": 0}


def meta_model(
    config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16, layers: int | None = None
) -> PreTrainedModel:
    """Return a causal LM without weights, on the meta device.

    Args:
        config: Configuration of the model.
        dtype: Dtype of the parameters.
        layers: Number of layers to keep, with plain rotary embeddings; None for all.

    Raises:
        ValueError: when it is of no causal LM.
    """
    config = copy.deepcopy(config)
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        for name in ("layer_types", "mlp_layer_types", "attention_layers"):
            if isinstance(getattr(text, name, None), list):
                setattr(text, name, getattr(text, name)[:layers])
        _plain_positions(getattr(text, "rope_parameters", None))
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"A model of type {config.model_type!r} is no causal language model.") from error
    model.tie_weights()
    return model


def _plain_positions(rope: Any) -> None:
    """Make rotary embeddings plain: scaled ones read the values of positions, which the meta device has not."""
    for key, value in rope.items() if isinstance(rope, dict) else ():
        _plain_positions(value)
        rope[key] = "default" if key == "rope_type" else value


def linear_layers(model: PreTrainedModel) -> dict[str, tuple[nn.Linear | Conv1D, int, int]]:
    """Return the layers that get quantized and LoRA, all linear ones but the head: name -> module, inputs, outputs."""
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        router = type(module).__module__.startswith("transformers.models.")  # PhiMoE's returns more than a tensor
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head and not router:
            rows, columns = module.weight.shape
            found[name] = (module, rows, columns) if isinstance(module, Conv1D) else (module, columns, rows)
    return found


def quantized_bytes(n: int, outputs: int, quantization: str) -> int:
    """Return the bytes of a quantized weight of `n` elements and `outputs` rows, as bitsandbytes stores it.

    NF4 with double quantization (arXiv 2305.14314, section 3) has 4 bits an element, an 8-bit scale for every 64 of
    them, a float32 scale for every 256 of those, an offset, and two code books of 16 and 256 float32 values. int8
    (arXiv 2208.07339) has a float32 scale for each row.
    """
    if quantization == "int8":
        return n + 4 * outputs
    blocks = -(-n // 64)
    return -(-n // 2) + blocks + 4 * (-(-blocks // 256)) + 4 * (16 + 256 + 1)


def base_bytes(model: PreTrainedModel, quantization: str) -> int:
    """Return the bytes of a model's weights; tied weights count once."""
    total = sum(p.numel() * p.itemsize for p in model.parameters())
    if quantization != "none":
        for module, _, outputs in linear_layers(model).values():
            n, itemsize = module.weight.numel(), module.weight.itemsize
            total += quantized_bytes(n, outputs, quantization) - n * itemsize
    return total


def lora_parameters(model: PreTrainedModel, rank: int) -> int:
    """Return the number of parameters of the policy's LoRA adapter with the given rank.

    PEFT says so itself: in mixtures of experts it adapts weights that are no linear layers.
    """
    return sum(p.numel() for p in _with_adapter(model, rank).parameters() if p.requires_grad)


def merged_copies(model: PreTrainedModel) -> int:
    """Return the bytes of the weights that the policy's adapter is merged into while it samples."""
    return merged_bytes(_with_adapter(model, 1))


def _with_adapter(model: PreTrainedModel, rank: int) -> PeftModel:
    with torch.device("meta"):
        return add_policy_adapter(copy.deepcopy(model), LoraConfig(r=rank))[0]


def states_width(model: PreTrainedModel) -> int:
    """Return the width of the hidden states that a head reads; a projection may change `hidden_size` (OPT-350m)."""
    rows, columns = model.get_output_embeddings().weight.shape
    return columns


def trained_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters that full fine-tuning trains: those of parts that read text."""
    beside = [model.base_model.get_submodule(name) for name in modules_beside_text(model)]
    return count(model) - sum(map(count, beside))


def count(model: nn.Module) -> int:
    """Return the number of parameters of a model; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def optimizer_bytes(n: int, itemsize: int, optimizer: str) -> int:
    """Return the bytes of optimizer state for `n` parameters of `itemsize` bytes each."""
    return n * _BYTES_OF_STATE.get(optimizer, 2 * itemsize)


def step_bytes(n: int, itemsize: int, optimizer: str) -> int:
    """Return the bytes of a step beside the state: AdamW without fusion takes the roots of all moments at once."""
    return n * itemsize if optimizer == "adamw_torch" else 0
