# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What PPO needs of FSDP2 and of DeepSpeed, set before accelerate prepares the model."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from .weights import gathered_state
from .zero import ZeroEngine

__all__ = ["configure", "load_models_whole"]


def load_models_whole() -> None:
    """Have transformers load models as it does without DeepSpeed.

    Told of ZeRO-3, it would partition every model as it loads it, also one that no engine of DeepSpeed ever gathers,
    such as a reward model; and a policy that is partitioned can be neither checked nor copied. DeepSpeed partitions the
    trained model when it is prepared.
    """
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def configure(
    accelerator: Accelerator, model: nn.Module, load: Callable[[str], object], *, bf16: bool, max_grad_norm: float
) -> None:
    """Set what PPO needs of FSDP or DeepSpeed, before accelerate prepares the model.

    Args:
        accelerator: The Trainer's.
        model: The model that it will prepare.
        load: Loads the weights of a checkpoint, which the Trainer leaves to DeepSpeed's engine.
        bf16: Whether forward passes compute in bfloat16.
        max_grad_norm: Norm to clip gradients to, of which DeepSpeed is told; 0 for none.

    Raises:
        RuntimeError: when accelerate has chosen another way to train than the one that was asked for.
    """
    if getattr(accelerator.state, "fsdp_plugin", None) is not None:
        _configure_fsdp(accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _configure_deepspeed(accelerator, model, load, bf16, max_grad_norm)


def _configure_fsdp(accelerator: Accelerator) -> None:
    """Keep log-probabilities, values and sums of gradients in float32, and checkpoints whole.

    Accelerate would round outputs and gradients to bf16, whose 8 bits are as coarse as PPO's clip range. Whole weights
    can be loaded by any number of processes.
    """
    if not accelerator.is_fsdp2:
        raise RuntimeError(f"accelerate trains with {accelerator.distributed_type.value} and not with FSDP2.")
    plugin = accelerator.state.fsdp_plugin
    # Made for the type that was asked for; those of sharded states would leave all processes but one without a state.
    plugin.state_dict_config = plugin.optim_state_dict_config = None
    plugin.set_state_dict_type("FULL_STATE_DICT")
    policy = plugin.mixed_precision_policy
    if policy is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=policy.param_dtype, reduce_dtype=torch.float32, output_dtype=None
        )


def _configure_deepspeed(
    accelerator: Accelerator, model: nn.Module, load: Callable[[str], object], bf16: bool, max_grad_norm: float
) -> None:
    """Leave steps to `ZeroEngine`, and precision to autocast.

    DeepSpeed's own bf16 would round all weights to bf16, those of the value head and the scale of returns too, and with
    them what the model returns; under autocast a run computes as it does without DeepSpeed.
    """
    config: dict[str, Any] = accelerator.state.deepspeed_plugin.deepspeed_config
    zero = config["zero_optimization"]
    config["managed_gradient_accumulation"] = False
    # The losses of micro-batches add up to that of a step, and DeepSpeed has nothing to divide by.
    config["gradient_accumulation_steps"] = 1
    config["train_batch_size"] = config["train_micro_batch_size_per_gpu"] * accelerator.num_processes
    config["gradient_clipping"] = max_grad_norm
    config["fp16"], config["bf16"] = {"enabled": False}, {"enabled": False}
    if zero["stage"] == 3:
        load_models_whole()  # the accelerator has told transformers again
        # What is gathered ahead follows the order of the passes before, and PPO's passes differ.
        zero["stage3_prefetch_bucket_size"] = 0
    if zero["stage"] != 2:
        zero["overlap_comm"] = False  # DeepSpeed's rule where the caller decides about steps
    if bf16:
        autocast = partial(torch.autocast, accelerator.device.type, torch.bfloat16)
        accelerator.autocast = autocast  # type: ignore[method-assign]
        model.forward = autocast()(model.forward)  # type: ignore[method-assign]
    prepare = accelerator.prepare

    @wraps(prepare)
    def prepared(*objects: Any, **options: Any) -> Any:
        made = prepare(*objects, **options)
        wrapper = accelerator.deepspeed_engine_wrapped
        if wrapper is not None and not isinstance(wrapper, ZeroEngine):
            engine = ZeroEngine(wrapper.engine, load)
            model.zero_engine = accelerator.deepspeed_engine_wrapped = engine  # type: ignore[assignment]
        return made

    accelerator.prepare = prepared  # type: ignore[method-assign]
    # Accelerate's would copy all weights in every process, though one of them writes.
    state = gathered_state if zero["stage"] == 3 else lambda _: None
    accelerator.get_state_dict = lambda *_, **__: state(model)  # type: ignore[assignment]
