# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The engines that a configuration can name."""

from collections.abc import Callable

from .continuous_batching import ContinuousBatchingEngine
from .generate import TransformersEngine
from .protocol import GenerationEngine
from .vllm import VLLMEngine

# Engines by name; the setting `use_<name>` chooses one, "generate" is the engine of a run that chooses none. A
# constructor names the settings of `PPOConfig` that its engine follows; its own settings are `<name>_<parameter>`.
ENGINES: dict[str, Callable[..., GenerationEngine]] = {
    "generate": TransformersEngine,
    "transformers_continuous_batching": ContinuousBatchingEngine,
    "vllm": VLLMEngine,
}
