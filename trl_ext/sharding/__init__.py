# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models that several processes hold in parts, by FSDP2 or by DeepSpeed's ZeRO.

On a model that is whole in every process each function does the plain thing, so that its callers need not ask.
"""

from .configuring import configure, load_models_whole
from .weights import (
    gathered_state,
    is_sharded,
    like,
    load_state,
    local,
    part_of,
    resharded,
    whole,
    written,
)
from .zero import ZeroEngine, engine_of, load_optimizer, without_engine
from .zero3 import is_partitioned

__all__ = [
    "ZeroEngine",
    "configure",
    "engine_of",
    "gathered_state",
    "is_partitioned",
    "is_sharded",
    "like",
    "load_models_whole",
    "load_optimizer",
    "load_state",
    "local",
    "part_of",
    "resharded",
    "whole",
    "without_engine",
    "written",
]
