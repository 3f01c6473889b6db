# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tiny random causal LMs of common architectures, saved as users have them."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from tests.real_tokenizers import real_tokenizer


class Family(NamedTuple):
    """Attributes:
    model_type: Of transformers.
    fields: What its configuration needs besides the usual sizes.
    turn_ends: Tokens that end a turn besides the EOS, as the generation configuration declares them.
    """

    model_type: str
    fields: dict[str, Any] = {}
    turn_ends: tuple[str, ...] = ()


_GEMMA = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 4}
_MOE = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}

# Each name is also that of its tokenizer.
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", turn_ends=("<|eot_id|>",)),
    "mistral": Family("mistral", {"sliding_window": 8}),
    "phi3": Family("phi3", turn_ends=("<|end|>",)),
    "gemma2": Family("gemma2", _GEMMA, ("<end_of_turn>",)),
    "gemma3": Family("gemma3_text", _GEMMA, ("<end_of_turn>",)),
    "qwen2": Family("qwen2", {"tie_word_embeddings": True}, ("<|endoftext|>",)),
    "qwen3": Family("qwen3", {"tie_word_embeddings": True}, ("<|endoftext|>",)),
    "deepseek_v3": Family("deepseek_v3", _MOE),
    "gpt_neox": Family("gpt_neox", {"rotary_pct": 0.5}),
    "opt": Family("opt", {"ffn_dim": 32, "word_embed_proj_dim": 8, "do_layer_norm_before": False}),
}

_ROOT = Path(tempfile.mkdtemp(prefix="families-"))
atexit.register(shutil.rmtree, _ROOT, ignore_errors=True)


def folder_for(*parts: object) -> Path:
    """The folder of this process for what is described by its parts; what stands there need not be built again."""
    return _ROOT / "-".join(str(part) for part in parts if part is not None)


def config(family: str, hidden_size: int = 16, **changes: Any) -> PretrainedConfig:
    """Make a family's configuration that fits its tokenizer; like published ones, it has a few embeddings to spare.

    Args:
        family: One of `FAMILIES`.
        hidden_size: A multiple of 16; 4-bit layers need 64.
        changes: Fields with other values.
    """
    tokenizer = real_tokenizer(family)
    sizes: dict[str, Any] = {
        "vocab_size": -(-(len(tokenizer) + 1) // 64) * 64,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden_size // 4,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    known = FAMILIES[family]
    if known.model_type in ("gpt_neox", "opt", "deepseek_v3"):
        del sizes["num_key_value_heads"], sizes["head_dim"]
    return AutoConfig.for_model(known.model_type, **(sizes | known.fields | changes))


def spread(model: nn.Module, seed: int = 0) -> None:
    """Give weights of a width at which such narrow models differ: with the usual 0.02 they predict every token alike.

    Norms, biases and what is trained from 0 stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() >= 2 and "lora_" not in name:
                embeds = "embed" in name or "lm_head" in name
                p.copy_(torch.randn(p.shape, generator=generator) * (0.5 if embeds else 0.2))


def base(family: str, dtype: str = "bfloat16", *, hidden_size: int = 16, stop_every: int | None = None) -> str:
    """Folder of a causal LM with random weights and of its tokenizer.

    Args:
        family: One of `FAMILIES`.
        dtype: Of the checkpoint; "bfloat16", "float32" or "float16". The same weights, rounded.
        hidden_size: A multiple of 16; 4-bit layers need 64.
        stop_every: Declare every so many-th token an EOS token as well: random models hardly ever choose the real one.
    """
    folder = folder_for(family, dtype, hidden_size, stop_every)
    if folder.is_dir():
        return str(folder)
    settings = config(family, hidden_size)
    tokenizer = real_tokenizer(family)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    spread(model)
    ends = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(FAMILIES[family].turn_ends))]
    if stop_every is not None:
        ends += [i for i in range(300, len(tokenizer), stop_every) if i not in ends]
    model.generation_config.eos_token_id = ends
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def sft_adapter(family: str, dtype: str = "bfloat16", *, hidden_size: int = 16, stop_every: int | None = None) -> str:
    """Folder of a LoRA adapter on a base, away from the identity, as SFT with TRL leaves one: adapter and tokenizer.

    Args:
        family, dtype, hidden_size, stop_every: Of the [`base`].
    """
    folder = folder_for("sft", family, dtype, hidden_size, stop_every)
    if folder.is_dir():
        return str(folder)
    source = base(family, dtype, hidden_size=hidden_size, stop_every=stop_every)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(source, dtype="auto"), settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    real_tokenizer(family).save_pretrained(folder)
    return str(folder)
