# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The model of the command line, for `from_pretrained`."""

from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

__all__ = ["init_kwargs", "load_tokenizer", "training_options"]


def init_kwargs(model_args: ModelConfig) -> dict[str, Any]:
    """Return revision, attention and dtype as options of `from_pretrained`; those that were not given are left out."""
    dtype = model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype)
    options = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": dtype,
    }
    return {name: value for name, value in options.items() if value is not None}


def load_tokenizer(model_args: ModelConfig, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model_name_or_path`."""
    return AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=trust_remote_code
    )


def training_options(model_args: ModelConfig) -> dict[str, Any]:
    """Return how TRL's trainers load a model: `init_kwargs`, quantization among them, and `peft_config`."""
    quantization = get_quantization_config(model_args)
    extra = {} if quantization is None else {"quantization_config": quantization}
    return {"init_kwargs": init_kwargs(model_args) | extra, "peft_config": get_peft_config(model_args)}
