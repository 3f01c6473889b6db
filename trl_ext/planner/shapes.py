# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Published configurations that the planner knows by name."""

from typing import Any

_QWEN = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768}
_LLAMA = {"model_type": "llama", "vocab_size": 128256, "rope_theta": 5e5, "max_position_embeddings": 8192}
_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _shape(family: dict[str, Any], *sizes: int, **fields: Any) -> dict[str, Any]:
    return family | dict(zip(_FIELDS, sizes, strict=True)) | fields


# Published configurations, from small to large.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _shape(_QWEN, 896, 4864, 24, 14, 2, vocab_size=151936, tie_word_embeddings=True),
    "llama-3.2-1b": _shape(_LLAMA, 2048, 8192, 16, 32, 8, tie_word_embeddings=True),
    "llama-3.2-3b": _shape(_LLAMA, 3072, 8192, 28, 24, 8, head_dim=128, tie_word_embeddings=True),
    "qwen2.5-7b": _shape(_QWEN, 3584, 18944, 28, 28, 4, vocab_size=152064, tie_word_embeddings=False),
    "llama-3-8b": _shape(_LLAMA, 4096, 14336, 32, 32, 8, tie_word_embeddings=False),
    "phi-4": _shape({"model_type": "phi3"}, 5120, 17920, 40, 40, 10, vocab_size=100352, pad_token_id=100349),
    "qwen2.5-14b": _shape(_QWEN, 5120, 13824, 48, 40, 8, vocab_size=152064, tie_word_embeddings=False),
    "qwen2.5-32b": _shape(_QWEN, 5120, 27648, 64, 40, 8, vocab_size=152064, tie_word_embeddings=False),
}
