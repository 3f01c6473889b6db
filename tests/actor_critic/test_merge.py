# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A merged model says what the policy said, whatever was trained in it; and it is there as a whole or not at all."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations import bitsandbytes as transformers_bitsandbytes

from tests import families
from trl_ext.actor_critic import build_actor_critic
from trl_ext.actor_critic.merge import merge

IDS = torch.tensor([[5, 300, 41, 1007, 900, 12]])


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


def scramble(model: nn.Module) -> None:
    """Move everything that is trained away from where it starts."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)


def assert_same(merged: PreTrainedModel, policy: nn.Module, ids: Tensor = IDS) -> None:
    """Equal up to the rounding of the merged weights' dtype."""
    ours, theirs = logits(merged, ids), logits(policy, ids)
    assert ours.shape == theirs.shape
    scale = theirs.abs().max()
    assert (ours - theirs).abs().max() < (1e-5 if merged.dtype == torch.float32 else 4e-2) * scale


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family(family, tmp_path):
    # Every other family in bfloat16; the rounding of one hides more than that of the other.
    dtype = ("float32", "bfloat16")[list(families.FAMILIES).index(family) % 2]
    adapter = families.sft_adapter(family, dtype)
    merge(adapter, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.dtype == getattr(torch, dtype)
    assert_same(merged, AutoPeftModelForCausalLM.from_pretrained(adapter))
    base = AutoModelForCausalLM.from_pretrained(families.base(family, dtype))
    assert (logits(merged) - logits(base)).abs().max() > 0.1, "the adapter counts"
    assert not list((tmp_path / "out").glob("adapter*"))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len(AutoTokenizer.from_pretrained(adapter))


GROWN: dict[str, dict[str, Any]] = {
    "resized": {},
    "embeddings and head saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embeddings saved": {"modules_to_save": ["embed_tokens"]},
    "token indices": {"trainable_token_indices": [7, -1]},
    "LoRA on the embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "LoRA on the head": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA on both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("resize", [True, False], ids=["more tokens", "same tokens"])
@pytest.mark.parametrize("kind", GROWN)
@pytest.mark.parametrize("family", ["llama", "qwen2"], ids=["untied", "tied"])
def test_after_added_tokens(family, kind, resize, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(families.base(family, "float32"))
    if resize:
        model.resize_token_embeddings(model.config.vocab_size + 3)
    last = model.config.vocab_size - 1
    options = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | GROWN[kind]
    if "trainable_token_indices" in options:
        options["trainable_token_indices"] = [7, last]
    policy = get_peft_model(model, LoraConfig(**options))
    scramble(policy)
    policy.save_pretrained(tmp_path / "run")
    if (family, resize) == ("llama", True) and "LoRA on the" in kind:
        # PEFT does not save the other layer's new rows then, so nobody can know them.
        other = "lm_head" if "embeddings" in kind else "embed_tokens"
        with pytest.raises(ValueError, match=rf"3 tokens more than its base has.* lacks their weights in '{other}';"):
            merge(tmp_path / "run", tmp_path / "out")
        return
    merge(tmp_path / "run", tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same(merged, policy, torch.tensor([[7, 300, last, 1007, 7, last - 1]]))


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_layers_are_dequantized_one_by_one(bits, tmp_path, monkeypatch):
    quantization = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    base = families.base("llama", "float32", hidden_size=64)
    policy = build_actor_critic(base, peft_config=LoraConfig(r=4), quantization_config=quantization)
    scramble(policy)
    policy.save_pretrained(tmp_path / "run")
    real, results = transformers_bitsandbytes.dequantize_bnb_weight, []

    def tracked(weight: nn.Parameter, state: Any = None) -> Tensor:
        assert not [ref for ref in results if ref() is not None], "a layer before is still there in full precision"
        result = real(weight, state).double()  # so that moving it to the CPU makes another tensor
        results.append(weakref.ref(result))
        return result

    monkeypatch.setattr(transformers_bitsandbytes, "dequantize_bnb_weight", tracked)
    merge(tmp_path / "run", tmp_path / "out")
    assert len(results) == 14
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not hasattr(merged.config, "quantization_config") and merged.dtype == torch.float32
    ours, theirs = logits(merged), logits(policy.causal_lm)
    # int8 also rounds what goes into its layers.
    assert (ours - theirs).abs().max() < (1e-4 if bits == 4 else 5e-2) * theirs.abs().max()


def test_an_interrupted_merge_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    adapter = families.sft_adapter("llama", "float32")  # built before the disk is full
    monkeypatch.setattr(type(AutoTokenizer.from_pretrained(adapter)), "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        merge(adapter, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_empty_output_folder_is_used_and_the_dtype_is_chosen(tmp_path):
    (tmp_path / "out").mkdir()
    merge(families.sft_adapter("llama", "float32"), tmp_path / "out", dtype=torch.float16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float16
    assert [Path(p).name for p in tmp_path.iterdir()] == ["out"]
