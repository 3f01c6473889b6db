# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks of a run that DeepSpeed shards, before anything is loaded."""

import importlib.util
import os
from typing import Any

from accelerate.utils import compare_versions
from transformers.training_args import ParallelMode

from trl_ext.sharding import load_models_whole

__all__ = ["check_deepspeed", "check_deepspeed_starts", "zero_stage"]

OLDEST = "0.19.8"  # the first that was seen to leave steps to the caller (`managed_gradient_accumulation`)
# Optimizers whose step needs the shapes of the weights, which ZeRO flattens.
_BY_SHAPE = ("adafactor", "apollo", "galore", "muon", "stable_adamw")
# Sections of DeepSpeed's configuration that are refused, with the reason.
_SECTIONS = {
    "optimizer": "PPO has to put a gate into the optimizer; use `optim`",
    "scheduler": "use `lr_scheduler_type`",
    "tensor_parallel": "PPO reads whole log-probabilities; leave it out",
    "torch_autocast": "set `bf16` of PPOConfig instead",
}
# Settings of ZeRO by which a process holds something else than its float part of each weight.
_OTHER_PARTS = (
    *("zero_hpz_partition_size", "mics_shard_size", "zero_quantized_weights", "zero_quantized_nontrainable_weights"),
    *("zero_quantized_gradients", "stage3_module_granularity_threshold"),
)


def zero_stage(args: Any) -> int | None:
    """Return the stage of ZeRO, of settings that transformers has been through; None without DeepSpeed."""
    plugin = getattr(args, "deepspeed_plugin", None)
    return None if plugin is None else int(plugin.zero_stage)


def check_deepspeed_starts(args: Any) -> None:
    """Refuse DeepSpeed where it cannot be started, before transformers tries.

    Raises:
        ValueError: with the way out.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError("DeepSpeed is not installed; run `pip install 'trl_ext[deepspeed]'`, or use FSDP2.")
    if compare_versions("deepspeed", "<", OLDEST):
        raise ValueError(
            f"DeepSpeed is older than {OLDEST}, and would step before PPO can drop a step; install a newer one."
        )
    if args.use_cpu:
        raise ValueError(
            "DeepSpeed does not start with `use_cpu`, and accelerate would train without it; leave one out."
        )
    if "LOCAL_RANK" not in os.environ:
        raise ValueError("DeepSpeed needs `accelerate launch` or `torchrun`, for one process too.")


def check_deepspeed(args: Any) -> None:
    """Refuse what PPO cannot do with DeepSpeed.

    Raises:
        ValueError: naming the setting and the way out.
    """
    stage = zero_stage(args)
    if stage is None:
        return
    if args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ValueError(
            "DeepSpeed finds no GPU, so that every process would train alone; on a CPU set `ddp_backend` to gloo."
        )
    config = args.deepspeed_plugin.deepspeed_config
    if stage == 3:
        load_models_whole()
    elif stage not in (1, 2):
        raise ValueError(f"DeepSpeed with `zero_stage` {stage} shards nothing; set 1, 2 or 3, or use DDP.")
    for name, reason in _SECTIONS.items():
        if name in config:
            raise ValueError(f"DeepSpeed's configuration has `{name}`, which is not supported: {reason}.")
    for name in _OTHER_PARTS:
        value = config["zero_optimization"].get(name)
        if value is True or (value or 0) > 1:  # groups of 1 are none
            raise ValueError(f"DeepSpeed's `{name}` is not supported, as it was never run; leave it out.")
    for name in ("offload_optimizer", "offload_param"):
        device = ((config["zero_optimization"].get(name)) or {}).get("device") or "none"
        if device != "none":
            raise ValueError(f"DeepSpeed's `{name}` to '{device}' is not supported, as it was never run; set none.")
    for name in ("fp16", "fp16_full_eval", "bf16_full_eval"):
        if getattr(args, name):
            raise ValueError(f"`{name}` is not supported with DeepSpeed; use `bf16` or float32.")
    if args.optim.startswith(_BY_SHAPE):
        raise ValueError(
            f"`optim='{args.optim.value}'` needs the shapes of weights, which DeepSpeed flattens; use another."
        )
