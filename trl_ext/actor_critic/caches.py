# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The caches of keys and values with which a policy samples: one that grows, and one of fixed size."""

import inspect

from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from trl_ext._compat import compiles_whole

__all__ = ["check_static_cache", "selectable_cache", "static_cache", "static_length"]

_STEP = 256  # tokens; the prompts' part of a static cache is a multiple of it, so that few sizes are compiled


def static_length(prompt: int, completion: int) -> int:
    """Return the tokens that a cache of fixed size has room for.

    They follow from these numbers alone, so that a resumed run computes what the other would have.

    Args:
        prompt: Tokens of the longest prompt of the batch; the cache has room for the next multiple of 256.
        completion: Tokens of the longest completion that may be sampled.
    """
    return -(-prompt // _STEP) * _STEP + completion


def static_cache(config: PretrainedConfig, prompt: int, completion: int) -> Cache:
    """Return an empty cache of fixed size for a causal LM; see `static_length`."""
    return StaticCache(config=_text_config(config), max_cache_len=static_length(prompt, completion))


def check_static_cache(model: PreTrainedModel) -> None:
    """Refuse `cache_implementation="static"` for a model that does not compute the same with a cache of fixed size.

    Raises:
        ValueError: for such a model.
    """
    name = type(model).__name__
    if not _takes_cache(model):
        raise ValueError(
            f"`cache_implementation='static'` needs a model with a cache of keys and values, which {name} has not; "
            "leave it out."
        )
    # GPT-Neo takes the end of the cache for the newest token, and its local attention then looks elsewhere.
    if not compiles_whole(model):
        raise ValueError(
            f"`cache_implementation='static'` needs a model that transformers can compile, which {name} is not; leave "
            "it out."
        )


def selectable_cache(model: PreTrainedModel) -> DynamicCache | None:
    """Return an empty cache from which rows can be taken out; None for a model that needs another kind.

    Layers of linear attention keep a state that `batch_select_indices` leaves alone.
    """
    if not _takes_cache(model):
        return None
    cache = DynamicCache(config=_text_config(model.config))
    plain = {type(layer) for layer in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
    return cache if cache.layers and plain else None


def _takes_cache(model: PreTrainedModel) -> bool:
    return "past_key_values" in inspect.signature(model.forward).parameters


def _text_config(config: PretrainedConfig) -> PretrainedConfig:
    return config.get_text_config(decoder=True)
