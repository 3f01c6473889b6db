# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Sampling with the policy's adapter merged into its base."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from trl_ext.actor_critic.merged import merged

from .protocol import Completions, GenerationEngine, close, weights_changed


class MergedEngine(GenerationEngine):
    """Sampling with another engine, while the model's adapter is merged into copies of the weights below it.

    Each token then takes one product for each layer in place of three. Merged weights are rounded to the base's dtype,
    so log-probabilities differ from those that are learned from; `importance_sampling_correction` makes up for it.

    Args:
        engine: An engine that samples with the model itself.
    """

    def __init__(self, engine: GenerationEngine):
        self.engine = engine

    def __call__(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], on_progress: Callable[..., Any] | None = None
    ) -> Completions:
        """Sample one completion per prompt; see [`GenerationEngine`]."""
        with merged(model):
            return self.engine(model, prompt_ids, on_progress)

    def weights_changed(self) -> None:
        """Tell the engine."""
        weights_changed(self.engine)

    def close(self) -> None:
        """Close the engine."""
        close(self.engine)
