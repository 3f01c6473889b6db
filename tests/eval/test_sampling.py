# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models by name, and samples from them."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from eval.quality.cli import load_model, sample_completions
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_tokenizer
from trl_ext.experience.prompts import tokenize_prompts

TEXTS = ["the cat", "a dog ran", "you are"]


def test_conversations_are_rendered_with_the_chat_template():
    conversation = [{"role": "user", "content": "hi"}]
    samples = sample_completions(tiny_causal_lm(), tiny_tokenizer(), [conversation], num_samples=2, max_new_tokens=3)
    assert samples.prompts == ["<user>hi<eos><assistant>"] * 2
    assert samples.prompt_ids == tokenize_prompts([conversation] * 2, tiny_tokenizer())
    with pytest.raises(ValueError, match="no chat template"):
        sample_completions(tiny_causal_lm(), tiny_tokenizer(chat_template=False), [conversation])


def test_adapter_and_base_tokenizer(tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm())
    model = get_peft_model(load_model(base)[0], LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    loaded, tokenizer = load_model(str(tmp_path / "adapter"))
    torch.testing.assert_close(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert not torch.allclose(loaded(input_ids=ids).logits, load_model(base)[0](input_ids=ids).logits)
    assert not loaded.training
    assert tokenizer.get_vocab() == load_model(base)[1].get_vocab()


def test_unknown_models(tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        load_model(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="causal language model"):
        load_model(str(tmp_path))
    tiny_causal_lm().save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no tokenizer"):
        load_model(str(tmp_path / "bare"))


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_lengths_and_ends(pad_is_eos):
    tokenizer = tiny_tokenizer(pad_is_eos=pad_is_eos)
    # Several ids end a completion, early and often; 3 is not the tokenizer's.
    model = tiny_causal_lm(eos_token_id=[2, 3, *range(40, 70)])
    samples = sample_completions(model, tokenizer, list(TEXTS), num_samples=8, max_new_tokens=6, batch_size=5)
    assert samples.prompts == [text for text in TEXTS for _ in range(8)]
    assert any(samples.terminated) and not all(samples.terminated)
    for length, terminated, empty, text in zip(
        samples.lengths, samples.terminated, samples.empty, samples.completions, strict=True
    ):
        assert (length < 6) if terminated else (length == 6)
        assert not any(tokenizer.decode([i]) in text for i in (2, 3))
        assert empty == (text.strip() == "") and (length > 0 or empty)


def test_every_completion_is_its_own_prompts():
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    # Logits this large leave one token, so that a completion depends on nothing but its prompt.
    model.lm_head.weight.data *= 1e4
    alone = [sample_completions(model, tokenizer, [text], max_new_tokens=4).completions[0] for text in TEXTS]
    assert len(set(alone)) == 3
    together = sample_completions(model, tokenizer, list(TEXTS), num_samples=2, max_new_tokens=4, batch_size=4)
    assert together.completions == [text for text in alone for _ in range(2)]


def test_only_eos_yields_empty_terminated_completions():
    samples = sample_completions(tiny_causal_lm(eos_token_id=list(range(160))), tiny_tokenizer(), list(TEXTS))
    assert samples.lengths == [0, 0, 0] and samples.completions == ["", "", ""]
    assert all(samples.terminated) and all(samples.empty)


def test_generation_config_of_the_model_does_not_leak():
    model, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    plain = sample_completions(model, tokenizer, list(TEXTS), num_samples=4, max_new_tokens=8)
    for name, value in {"top_k": 1, "repetition_penalty": 5.0, "min_p": 0.9, "no_repeat_ngram_size": 1}.items():
        setattr(model.generation_config, name, value)
    assert sample_completions(model, tokenizer, list(TEXTS), num_samples=4, max_new_tokens=8) == plain
    assert model.generation_config.top_k == 1


def test_seeded_and_without_side_effects():
    model, tokenizer = tiny_causal_lm().train(), tiny_tokenizer()
    before = torch.get_rng_state()
    first = sample_completions(model, tokenizer, list(TEXTS), seed=1)
    assert first == sample_completions(model, tokenizer, list(TEXTS), seed=1)
    assert first != sample_completions(model, tokenizer, list(TEXTS), seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_too_long_a_prompt():
    with pytest.raises(ValueError, match="Prompt 0 has .* tokens, and with 127 new ones exceeds the model's context"):
        sample_completions(tiny_causal_lm(), tiny_tokenizer(), ["the cat sat on the mat"], max_new_tokens=127)
