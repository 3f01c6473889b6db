# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The other tests rest on these models: a degenerate one would make them pass for the wrong reason."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny_models import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    VOCAB_SIZE,
    prompt_dataset,
    save_tiny,
    tiny_causal_lm,
    tiny_classifier,
    tiny_tokenizer,
)

ARCHITECTURES = ["llama", "gpt2", "qwen2", "mistral", "gemma2", "phi", "gpt_neox"]


def test_tokenizer_round_trip_and_padding() -> None:
    tokenizer = tiny_tokenizer()
    text = "The cat's 3 dogs\nran (fast), ok? {yes}"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (PAD_ID, BOS_ID, EOS_ID)
    assert len(tokenizer) == VOCAB_SIZE
    batch = tokenizer(["a", "a cat sat"], padding=True)
    assert batch.attention_mask[0][0] == 0 and batch.attention_mask[0][-1] == 1


def test_tokenizer_variants() -> None:
    assert tiny_tokenizer(pad_is_eos=True).pad_token_id == EOS_ID
    assert tiny_tokenizer(chat_template=False).chat_template is None
    chat = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<user>hi<eos><assistant>"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_causal_lm_is_sharp_reproducible_and_trains(arch: str) -> None:
    model = tiny_causal_lm(arch).eval()
    ids = torch.arange(10, 26)[None]
    logits = model(ids).logits
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    assert 1.0 < entropy < math.log(VOCAB_SIZE) - 0.15, "neither deterministic nor uniform"
    assert torch.equal(logits, tiny_causal_lm(arch).eval()(ids).logits)
    assert not torch.equal(logits, tiny_causal_lm(arch, seed=1).eval()(ids).logits)
    logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_dropout_reaches_every_architecture(arch: str) -> None:
    ids = torch.arange(10, 26)[None]
    model = tiny_causal_lm(arch, dropout=0.5).train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    model = tiny_causal_lm(arch).train()
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_building_a_model_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    tiny_causal_lm()
    tiny_classifier()
    assert torch.equal(state, torch.get_rng_state())


def test_several_eos_ids_end_completions() -> None:
    model = tiny_causal_lm(eos_token_id=list(range(2, 60)))
    out: torch.Tensor = model.generate(  # type: ignore[operator]
        torch.full((16, 1), 70), do_sample=True, max_new_tokens=8, pad_token_id=PAD_ID
    )
    ended = ((out[:, 1:] >= 2) & (out[:, 1:] < 60)).any(dim=1).float().mean().item()
    assert 0.3 < ended <= 1.0


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_classifier_labels_and_spread(arch: str) -> None:
    model = tiny_classifier(labels=("fine", "toxic", "insult"), arch=arch)
    assert model.config.id2label == {0: "fine", 1: "toxic", 2: "insult"}
    logits = model(torch.arange(10, 42).reshape(4, 8)).logits
    assert logits.shape == (4, 3) and logits.std(dim=0).min() > 0.01


def test_prompts_are_distinct_and_of_several_lengths() -> None:
    prompts = prompt_dataset(20)["prompt"]
    assert len(set(prompts)) == 20
    assert len({len(tiny_tokenizer()(p).input_ids) for p in prompts}) > 3
    assert prompt_dataset(2, conversational=True)[1]["prompt"][0] == {"role": "user", "content": prompts[1]}


def test_saved_models_load_by_name(tmp_path: Path) -> None:
    name = save_tiny(tmp_path / "lm", tiny_causal_lm())
    assert AutoModelForCausalLM.from_pretrained(name).config.vocab_size == len(AutoTokenizer.from_pretrained(name))
