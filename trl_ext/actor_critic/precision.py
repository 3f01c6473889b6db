# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Trained weights are float32, whatever the checkpoint's dtype.

Adam moves a weight by about the learning rate. At 3e-6 that is less than half the spacing of bfloat16 numbers around
most weights, so that the sum rounds back to the old weight: 3.6% of the weights moved in 32 steps, 92% in float32.
Autocast still computes in bfloat16 or float16.
"""

import warnings
from functools import partial
from typing import Any

import torch
from peft import PeftConfig, PeftType
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from .trunk import causal_lm

_HALVES = (torch.float16, torch.bfloat16)


def requested_dtype(init_kwargs: dict[str, Any]) -> torch.dtype | None:
    """Return the dtype in keyword arguments of `from_pretrained`; None where it is "auto" or left out.

    Raises:
        ValueError: when `dtype` is no floating-point dtype.
    """
    given = init_kwargs.get("dtype", init_kwargs.get("torch_dtype"))
    if given in (None, "auto"):
        return None
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(
            f"`dtype` {given!r} in `model_init_kwargs` is no floating-point dtype; give 'float32', 'bfloat16' or "
            "'float16', or leave it out."
        )
    return dtype


def with_dtype(init_kwargs: dict[str, Any], *, trained: bool) -> dict[str, Any]:
    """Return keyword arguments of `from_pretrained` with the dtype of a model given by name.

    The dtype is the requested one; by default float32 for trained weights and the checkpoint's own for frozen ones.

    Raises:
        ValueError: when float16 weights would be trained.
    """
    dtype = requested_dtype(init_kwargs)
    if trained and dtype is torch.float16:
        raise ValueError(_float16("`model`"))
    options = {key: value for key, value in init_kwargs.items() if key not in ("dtype", "torch_dtype")}
    return options | {"dtype": dtype or (torch.float32 if trained else "auto")}


def check_trained_dtypes(policy: nn.Module, critic: nn.Module | None) -> None:
    """Refuse trainable weights in float16, and warn of those in bfloat16.

    Raises:
        ValueError: for trainable weights in float16.
    """
    parts = {"`model`": policy, "`critic`": critic}
    found = {
        name: {p.dtype for p in part.parameters() if p.requires_grad}
        for name, part in parts.items()
        if part is not None
    }
    for name, dtypes in found.items():
        if torch.float16 in dtypes:
            raise ValueError(_float16(name))
    halves = [name for name, dtypes in found.items() if torch.bfloat16 in dtypes]
    if halves:
        warnings.warn(
            f"{' and '.join(halves)} {'are' if len(halves) > 1 else 'is'} trained in bfloat16, whose rounding drops "
            "most updates at usual learning rates; load in float32 (leave `dtype` out of `model_init_kwargs`, or call "
            "`.float()` on a model), and set `bf16=True` to compute in bfloat16.",
            stacklevel=4,
        )


def _float16(name: str) -> str:
    return (
        f"{name} would be trained in float16, in which small updates vanish and gradients overflow; load it in float32 "
        "(leave `dtype` out of `model_init_kwargs`, or call `.float()` on a model), and set `fp16=True` to compute in "
        "float16."
    )


def copies_round_less(model: nn.Module, peft_config: PeftConfig) -> bool:
    """Return whether an adapter copies modules of a half-precision base, whose float32 copies round differently."""
    copies = getattr(peft_config, "modules_to_save", None) or peft_config.peft_type == PeftType.LN_TUNING
    return bool(copies) and any(p.dtype in _HALVES for p in model.parameters())


def adapters_in_float32(model: nn.Module, *names: str) -> None:
    """Convert trainable adapters, and those called `names`, to float32, on a base of any dtype.

    Args:
        model: A PEFT model.
        names: Frozen adapters, such as the reference, which must be computed in the policy's precision.
    """
    for name, p in model.named_parameters():
        if p.dtype in _HALVES and (p.requires_grad or any(f".{adapter}." in f"{name}." for adapter in names)):
            p.data = p.data.float()
    _join_dtypes(causal_lm(model))


def _join_dtypes(model: PreTrainedModel) -> None:
    """Let float32 copies of whole modules (`modules_to_save`) work inside a base of another dtype without autocast.

    PEFT's LoRA layers convert their inputs and outputs; a copied module is called as it is.
    """
    heads = (model.get_output_embeddings(), getattr(model, "score", None), getattr(model, "classifier", None))
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            copies, original = wrapper.modules_to_save.values(), wrapper.original_module
        elif hasattr(wrapper, "ln_tuning_layers"):  # PEFT's layer-norm tuning copies modules too
            copies, original = wrapper.ln_tuning_layers.values(), wrapper.get_base_layer()
        else:
            if hasattr(wrapper, "ia3_l") and not hasattr(wrapper, "joined_dtypes"):
                wrapper.joined_dtypes = True
                wrapper.register_forward_hook(_like_input)  # on a quantized base PEFT's (IA)^3 returns float32
            continue
        theirs = next((p.dtype for p in original.parameters()), torch.float32)
        for copy in copies:
            ours = next((p.dtype for p in copy.parameters()), theirs)
            if ours != theirs and theirs in _HALVES and not hasattr(copy, "joined_dtypes"):
                copy.joined_dtypes = True
                copy.register_forward_pre_hook(partial(_cast_inputs, ours), with_kwargs=True)
                if all(wrapper is not head for head in heads):  # logits and scores stay in float32
                    copy.register_forward_hook(partial(_cast_output, theirs))


def _like_input(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output.to(args[0].dtype)


def _cast_inputs(dtype: torch.dtype, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return _convert(args, dtype), {key: _convert(value, dtype) for key, value in kwargs.items()}


def _cast_output(dtype: torch.dtype, module: nn.Module, args: tuple, output: Any) -> Any:
    return _convert(output, dtype)


def _convert(value: Any, dtype: torch.dtype) -> Any:
    """Return floating-point tensors, also inside tuples, in `dtype`, and any other value unchanged."""
    if isinstance(value, tuple):
        return tuple(_convert(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
