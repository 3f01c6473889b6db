# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Sampling with transformers' continuous batching."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .protocol import Completions, GenerationEngine, own_generation_config


class ContinuousBatchingEngine(GenerationEngine):
    """Sampling with transformers' continuous batching (`model.generate_batch`), with a paged KV cache.

    Finished completions make room for the next prompt.

    Args:
        tokenizer: Tokenizer of the model.
        eos_token_ids: Tokens that end a completion.
        max_new_tokens: Length limit in tokens.
        temperature, top_p, top_k: The sampling distribution.
        return_logps: Also return the log-probabilities that were sampled from.
        config: Arguments of `ContinuousBatchingConfig`. By default the cache takes half of the free memory;
            transformers' own default of 90% leaves nothing for learning.

    Raises:
        ImportError: when transformers has no continuous batching.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_ids: list[int],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        return_logps: bool = False,
        config: dict[str, Any] | None = None,
    ):
        from transformers.generation import ContinuousBatchingConfig

        self.eos_token_ids = set(eos_token_ids)
        self.max_new_tokens = max_new_tokens
        self.return_logps = return_logps
        self.config = ContinuousBatchingConfig(
            **{"max_memory_percent": 0.5, "return_logprobs": return_logps, **(config or {})}
        )
        self.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=eos_token_ids or None,
        )

    def __call__(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], on_progress: Callable[..., Any] | None = None
    ) -> Completions:
        """Sample one completion per prompt; see [`GenerationEngine`]."""
        with torch.no_grad(), own_generation_config(model, self.generation_config), _cast_as_autocast_would(model):
            try:
                outputs = model.generate_batch(
                    prompt_ids,
                    generation_config=self.generation_config,
                    continuous_batching_config=self.config,
                    progress_bar=False,
                )
            except (MemoryError, ValueError) as error:
                raise RuntimeError(
                    f"Continuous batching cannot start ({error}); set `max_memory_percent`, `max_batch_tokens` or "
                    "`num_blocks` in `transformers_continuous_batching_config`."
                ) from error
        results = list(outputs.values())
        failed = [r.error for r in results if r.error is not None]
        if failed or len(results) != len(prompt_ids):
            raise RuntimeError(
                f"Continuous batching finished {len(results) - len(failed)} of {len(prompt_ids)} prompts"
                f"{f' (first error: {failed[0]})' if failed else ''}; set `use_transformers_continuous_batching=False`."
            )
        ids = [list(r.generated_tokens) for r in results]
        if on_progress is not None:
            on_progress(len(ids), sum(map(len, ids)))
        return Completions(
            ids,
            [bool(row) and row[-1] in self.eos_token_ids for row in ids],
            [list(r.logprobs) for r in results] if self.return_logps else None,
        )


@contextmanager
def _cast_as_autocast_would(model: PreTrainedModel) -> Iterator[None]:
    """Cast float32 weights to the dtype of this thread's autocast in a block.

    Autocast belongs to a thread, and continuous batching calls the model from another one. Its cache takes the dtype of
    the weights besides. Autocast keeps a cast copy of the weights too, so this takes no more memory.
    """
    kind = model.device.type
    cast: list[tuple[torch.nn.Parameter, Tensor]] = []
    try:
        if torch.is_autocast_enabled(kind):
            for parameter in model.parameters():
                if parameter.dtype == torch.float32:
                    cast.append((parameter, parameter.data))
                    parameter.data = parameter.data.to(torch.get_autocast_dtype(kind))
        yield
    finally:
        for parameter, data in cast:
            parameter.data = data
