# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""FSDP2 on a CPU, where accelerate would train with DDP without a word, and DeepSpeed without compiling."""

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from trl_ext import PPOConfig
from trl_ext.checks import training_arguments

_made = AcceleratorState.__init__


def _sharding(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def shard_on_cpu() -> None:
    """Make accelerate shard on a CPU, for the rest of this process."""
    AcceleratorState.__init__ = _sharding  # type: ignore[method-assign]
    training_arguments.FSDP_DEVICES = ("cpu",)


def deepspeed_on_cpu() -> None:
    """Keep DeepSpeed from compiling its exchange by shared memory, which takes minutes, in this process.

    Without `use_cpu`, with which DeepSpeed does not start, transformers would refuse `bf16` too.
    """
    import deepspeed

    finish = PPOConfig.__post_init__

    def with_bf16(self: PPOConfig) -> None:
        bf16, self.bf16 = bool(self.bf16), False
        finish(self)
        if bf16:
            self.bf16 = self.deepspeed_plugin.deepspeed_config["bf16"]["enabled"] = True

    PPOConfig.__post_init__ = with_bf16  # type: ignore[method-assign]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
