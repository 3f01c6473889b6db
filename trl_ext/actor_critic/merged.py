# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A policy whose adapter is in the weights of its base for a while, which spares small products at every token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from trl_ext.messages.printable import first_line

from .loading import has_adapter, policy_config
from .model import ActorCritic

OPTION = "merge_adapters_while_sampling"


def check_mergeable(model: Any, peft_config: Any, quantization_config: Any, init_kwargs: dict[str, Any]) -> None:
    """Refuse a policy without an adapter or on a quantized base, before it is loaded.

    Args:
        model, peft_config, quantization_config: As in `PPOTrainer`.
        init_kwargs: Keyword arguments of `from_pretrained` for a model given by name.

    Raises:
        ValueError: for a policy that cannot be merged.
    """
    policy = model.policy if isinstance(model, ActorCritic) else model
    if peft_config is None and not has_adapter(policy, init_kwargs):
        raise ValueError(f"`{OPTION}` needs a policy with adapters (`peft_config`); leave it out.")
    given = quantization_config or init_kwargs.get("quantization_config")
    if given is not None or getattr(policy_config(policy, init_kwargs), "quantization_config", None) is not None:
        raise ValueError(
            f"`{OPTION}` is not supported with a quantized `model`: the merged weights would be rounded to its few "
            "bits again; leave it out."
        )


def check_merges(policy: nn.Module) -> None:
    """Merge the adapter of a loaded policy once, and take it out again.

    Raises:
        ValueError: when PEFT cannot merge an adapter of this kind, or memory does not suffice.
    """
    try:
        with merged(policy):
            pass
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"The policy's adapter cannot be merged into its base ({first_line(error)}); leave `{OPTION}` out."
        ) from error


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Merge the active adapters of a model into copies of the weights below them, for the length of a block.

    Subtracting them again would leave the base rounded otherwise than before. The base's own tensors are set aside
    instead, and put back. Of a tied weight only the side with the adapter changes, since the other keeps the original.
    """
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
    originals: dict[tuple[nn.Module, str], nn.Parameter] = {}
    merging: list[BaseTunerLayer] = []
    try:
        for layer in layers:
            if active := _active_adapters(layer):
                base = layer.get_base_layer()
                for name, parameter in base.named_parameters(recurse=False):
                    if (base, name) not in originals:
                        originals[base, name] = parameter
                        copy = parameter.detach().clone()
                        base.register_parameter(name, nn.Parameter(copy, requires_grad=False))
                merging.append(layer)
                # In half precision the product of the adapter's matrices would be rounded before the sum is.
                with torch.no_grad(), torch.autocast(_device_type(base), enabled=False):
                    layer.merge(adapter_names=active)
        yield
    finally:
        for layer in merging:
            layer.merged_adapters.clear()
        for (base, name), parameter in originals.items():
            base.register_parameter(name, parameter)


def _active_adapters(layer: BaseTunerLayer) -> list[str]:
    """Return the active adapters that the layer has; others may be on other layers alone."""
    parts = [getattr(layer, name) for name in layer.adapter_layer_names]
    return [name for name in layer.active_adapters if any(name in part for part in parts)]


def _device_type(module: nn.Module) -> str:
    return next(module.parameters()).device.type


def merged_bytes(policy: PeftModel) -> int:
    """Return the bytes of the copies that `merged` makes."""
    found = {
        (id(base), name): parameter.nbytes
        for layer in policy.modules()
        if isinstance(layer, BaseTunerLayer) and _active_adapters(layer)
        for base in [layer.get_base_layer()]
        for name, parameter in base.named_parameters(recurse=False)
    }
    return sum(found.values())
