# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Engines that sample completions: transformers' `generate` and continuous batching, and vLLM."""

from .continuous_batching import ContinuousBatchingEngine
from .generate import TransformersEngine
from .merged import MergedEngine
from .protocol import (
    AsyncEngine,
    Completions,
    GenerationEngine,
    asynchronous,
    close,
    eos_token_ids,
    weights_changed,
)
from .table import ENGINES
from .vllm import VLLMEngine, check_vllm, server_url

__all__ = [
    "ENGINES",
    "AsyncEngine",
    "Completions",
    "ContinuousBatchingEngine",
    "GenerationEngine",
    "MergedEngine",
    "TransformersEngine",
    "VLLMEngine",
    "asynchronous",
    "check_vllm",
    "close",
    "eos_token_ids",
    "server_url",
    "weights_changed",
]
