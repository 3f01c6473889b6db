# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""FSDP2 on a CPU, where accelerate would train with DDP without a word."""

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

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
