# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Perplexity against a uniform model and against the loss of transformers itself."""

import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tests.tiny_models import VOCAB_SIZE, tiny_causal_lm, tiny_tokenizer
from trl_ext.evaluation.perplexity import completion_nlls, encode_pair, summarize

PROMPTS = [[5, 9], [7], [11, 12, 13, 14], [3]]
COMPLETIONS = [[20, 21, 22], [30], [], [40, 41, 42, 43, 44, 2]]


def loss_of_transformers(model, prompt, completion):
    ids = torch.tensor([prompt + completion])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    return model(input_ids=ids, labels=labels).loss.item() * len(completion)


def test_uniform_model_has_the_vocabulary_as_perplexity():
    model = tiny_causal_lm()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    nlls = completion_nlls(model, PROMPTS, COMPLETIONS)
    counts = [len(ids) for ids in COMPLETIONS]
    assert nlls == pytest.approx([count * math.log(VOCAB_SIZE) for count in counts])
    result = summarize(nlls, counts)
    assert result["perplexity"] == pytest.approx(VOCAB_SIZE)
    assert result["empty_fraction"] == 0.25
    assert math.isnan(result["perplexities"][2])


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_matches_the_loss_of_transformers_whatever_the_batch(arch, batch_size):
    model = tiny_causal_lm(arch).eval()
    expected = [
        loss_of_transformers(model, prompt, completion) if completion else 0.0
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    assert completion_nlls(model, PROMPTS, COMPLETIONS, batch_size) == pytest.approx(expected, rel=1e-4)


def test_weighted_by_tokens():
    # 1 token at 6 nats and 3 tokens at 2 nats in all: exp(8 / 4), not the mean of exp(6) and exp(2 / 3).
    result = summarize([6.0, 2.0], [1, 3])
    assert result["perplexity"] == pytest.approx(math.exp(2))
    assert result["perplexities"] == pytest.approx([math.exp(6), math.exp(2 / 3)])
    assert math.isnan(summarize([0.0], [0])["perplexity"])


def test_dropout_is_off_and_the_mode_comes_back():
    model = tiny_causal_lm(dropout=0.5).train()
    assert completion_nlls(model, PROMPTS, COMPLETIONS) == completion_nlls(model, PROMPTS, COMPLETIONS)
    assert model.training


def test_bad_input():
    with pytest.raises(ValueError, match="4 prompts for 1 completions"):
        completion_nlls(tiny_causal_lm(), PROMPTS, [[1]])
    with pytest.raises(ValueError, match="Prompt 0 has no token"):
        completion_nlls(tiny_causal_lm(), [[]], [[1]])


@pytest.mark.parametrize("cut", [1, 6, 9, 11, 22])
def test_pair_is_the_text_tokenized_at_once(cut):
    tokenizer = tiny_tokenizer()
    text = "the cat sat on the mat"
    prompt_ids, completion_ids = encode_pair(tokenizer, text[:cut], text[cut:])
    assert prompt_ids + completion_ids == tokenizer(text)["input_ids"]
    # A token across the boundary is the completion's; none of the completion is counted as prompt.
    assert len(tokenizer.decode(prompt_ids)) <= cut
    assert len(tokenizer.decode(completion_ids)) >= len(text) - cut
    assert bool(completion_ids) == (cut < len(text))


def test_special_tokens_in_front_are_context_and_behind_do_not_count():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    prompt_ids, completion_ids = encode_pair(tokenizer, "the cat", " sat on")
    assert prompt_ids[0] == 1 and 2 not in prompt_ids
    assert completion_ids and 2 not in completion_ids
    assert encode_pair(tokenizer, "the cat", "")[1] == []
    assert encode_pair(tokenizer, "the cat", " sat on", add_special_tokens=False)[0] == prompt_ids[1:]
