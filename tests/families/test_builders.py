# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The families are what they are said to be: otherwise the tests that use them show nothing."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from sentencepiece import SentencePieceProcessor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from tests import families
from tests.real_tokenizers import package

TEXT = "Hello, my  dog is\nquite ünïcode."
CHAT = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    return {name: families.real_tokenizer(name) for name in families.FAMILIES}


def ids_of(tokenizer, text: str) -> torch.Tensor:
    return tokenizer(text, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_base_loads_by_name_with_its_tokenizer(name, tokenizers):
    wide, narrow = (AutoModelForCausalLM.from_pretrained(families.base(name, d)) for d in ("float32", "bfloat16"))
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    tokenizer, ours = AutoTokenizer.from_pretrained(families.base(name, "bfloat16")), tokenizers[name]
    ids = ids_of(ours, TEXT)
    assert torch.equal(ids_of(tokenizer, TEXT), ids) and tokenizer.decode(ids[0, 2:]) == ours.decode(ids[0, 2:])
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (ours.pad_token_id, ours.eos_token_id)
    assert len(tokenizer) <= wide.config.vocab_size < len(tokenizer) + 65
    one, other = (model(input_ids=ids).logits[0].float().softmax(-1) for model in (wide, narrow))
    assert (one - other).abs().sum(-1).max() < 0.2, "the same weights, rounded"
    entropy = -(one * one.log()).sum(-1)
    assert entropy.max() < torch.tensor(float(one.shape[-1])).log() - 0.3, "far from uniform"


def test_tokenizers_differ_where_real_ones_do(tokenizers):
    pads = {name: tokenizer.pad_token_id for name, tokenizer in tokenizers.items()}
    ends = {name: tokenizer.eos_token_id for name, tokenizer in tokenizers.items()}
    assert [name for name, pad in pads.items() if pad is None] == ["llama", "mistral", "gpt_neox"]
    assert [name for name, pad in pads.items() if pad == ends[name]] == ["phi3", "deepseek_v3"]
    # Decoders of the Llama 2 kind drop the space before the first word.
    kept = {n: t.decode(t.encode("a dog", add_special_tokens=False)[1:]) for n, t in tokenizers.items()}
    assert [name for name, text in kept.items() if text == " dog"] == ["qwen2", "qwen3", "deepseek_v3", "gpt_neox"]
    assert {text for name, text in kept.items() if name in ("llama", "mistral", "phi3", "gemma2", "opt")} == {"dog"}


def test_templates_that_write_bos_and_tokenizers_that_write_another(tokenizers):
    twice = []
    for name, tokenizer in tokenizers.items():
        if tokenizer.chat_template is None:
            assert name in ("gpt_neox", "opt")
            continue
        text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        if tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
            twice.append(name)
    assert twice == ["llama", "gemma2", "gemma3"]


def test_the_vocabulary_of_llama_2_is_read_as_sentencepiece_reads_it(tokenizers):
    processor = SentencePieceProcessor(model_file=str(package("mistral_common") / "data" / "tokenizer.model.v1"))
    tokenizer = tokenizers["llama"]
    assert tokenizer(TEXT)["input_ids"] == [1, *processor.encode(TEXT)]
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == processor.encode(TEXT)


def test_stop_tokens():
    model = AutoModelForCausalLM.from_pretrained(families.base("llama", "float32", stop_every=16))
    ends = model.generation_config.eos_token_id
    assert ends[:2] == [2, 32002] and ends[2:4] == [300, 316] and len(ends) > 1900
    assert AutoModelForCausalLM.from_pretrained(families.base("llama")).generation_config.eos_token_id == [2, 32002]


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_an_sft_adapter_loads_with_peft_and_changes_the_base(name):
    policy = AutoPeftModelForCausalLM.from_pretrained(families.sft_adapter(name))
    ids = ids_of(AutoTokenizer.from_pretrained(families.sft_adapter(name)), TEXT)
    with torch.no_grad(), policy.disable_adapter():
        base = policy(input_ids=ids).logits
    with torch.no_grad():
        assert (policy(input_ids=ids).logits - base).abs().max() > 0.1


def test_a_classifier():
    model = AutoModelForSequenceClassification.from_pretrained(families.classifier("qwen2"))
    assert model.config.id2label == {0: "neutral", 1: "toxic", 2: "insult"}


def reward(model, tokenizer, text: str, at: int | None = None) -> float:
    """The reward of a text, an EOS token appended: at the token `at`, or where transformers reads it."""
    ids = ids_of(tokenizer, text + tokenizer.eos_token)
    with torch.no_grad():
        if at is None:
            return model(input_ids=ids).logits.item()
        return model.score(model.base_model(input_ids=ids).last_hidden_state[0, at]).item()


def ranked_right(model, tokenizer, at: int | None = None) -> int:
    """In how many of the eight examples the better answer has the higher reward."""
    rewards = [[reward(model, tokenizer, p + answer, at) for answer in pair] for p, *pair in families.EXAMPLES]
    return sum(good > bad + 0.5 for good, bad in rewards)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["deepseek_v3", "llama"])
def test_reward_models_rank_by_what_they_were_trained_on(name, dtype):
    """Both have pad == eos after RewardTrainer, and so read the reward at the token before the EOS."""
    folder = families.reward_model(name, dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.dtype == getattr(torch, dtype)
    assert ranked_right(model, tokenizer) >= 7
    assert ranked_right(model, tokenizer, at=-2) >= 7
    assert ranked_right(model, tokenizer, at=-1) <= 4, "at the EOS the order is another"


@pytest.mark.parametrize("name", ["deepseek_v3", "llama"])
def test_reward_adapters_rank_by_what_they_were_trained_on(name):
    folder = families.reward_adapter(name, "bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).merge_and_unload().eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    assert ranked_right(model, tokenizer) >= 7
    assert ranked_right(model, tokenizer, at=-1) <= 4, "at the EOS the order is another"
