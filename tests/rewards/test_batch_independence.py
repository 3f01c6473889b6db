# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A text's score is the model's own for that text alone, whatever is scored with it and whoever pads."""

import itertools
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny_models import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, tiny_tokenizer
from trl_ext.evaluation.judges import RewardJudge
from trl_ext.rewards import PreferenceReward, ToxicityReward

DECODERS = ["llama", "qwen2", "mistral", "gemma2", "gpt2", "gpt_neox", "opt", "phi"]
ENCODERS = ["bert", "roberta", "electra", "xlnet"]
# The padding token of the model's configuration: none, that of the tokenizer or not, no token, EOS, another one that a
# text ends in ("t" of "cat").
CONFIG_PADS: list[int | None] = [None, PAD_ID, 3, -1, EOS_ID, 89]
TOKENIZER_PADS = [None, "<pad>", "<eos>"]
TEXTS = ["the cat", "a small dog ran to the old house near the river", "<eos>", "you are<eos><eos>", "t", "it<pad>"]
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "initializer_range": 0.5, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID,
    "max_position_embeddings": 128,
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "qwen2": {"num_key_value_heads": 2}, "mistral": {"num_key_value_heads": 2},
    "gemma2": {"head_dim": 8, "num_key_value_heads": 2},
    "opt": {"ffn_dim": 16, "word_embed_proj_dim": 16, "init_std": 0.5},
    "xlnet": {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "init_std": 0.5},
}  # fmt: skip


def classifier(arch: str, labels: int, pad: int | None) -> PreTrainedModel:
    sizes = SIZES | EXTRA.get(arch, {})
    if arch == "xlnet":
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
        sizes = {key: value for key, value in sizes.items() if key not in names}
    config = AutoConfig.for_model(arch, **sizes, pad_token_id=pad, num_labels=labels)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def tokenizer(pad: str | None) -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.pad_token = pad
    return made


def alone(model: PreTrainedModel, texts: list[str]) -> torch.Tensor:
    """Logits of one text at a time, with the model's configuration as it is."""
    ids = [tiny_tokenizer()(text)["input_ids"] for text in texts]
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits for row in ids])


@pytest.mark.parametrize("arch", DECODERS + ENCODERS)
def test_batched_equals_one_by_one(arch):
    distinct = set()
    for config_pad, tokenizer_pad in itertools.product(CONFIG_PADS, TOKENIZER_PADS):
        if config_pad is None and arch == "roberta":
            continue  # it cannot be built without: it counts positions from behind its padding token
        what = f"{config_pad} in the config, {tokenizer_pad} in the tokenizer"
        model = classifier(arch, 1, config_pad)
        expected = alone(model, TEXTS)[:, 0].tolist()
        reward = PreferenceReward(model, tokenizer=tokenizer(tokenizer_pad), append_eos=False)
        got = reward([""] * len(TEXTS), TEXTS)
        assert got == pytest.approx(expected, abs=1e-4), what
        assert model.config.pad_token_id == config_pad, "the user's model is as it was"
        distinct.add(tuple(round(score, 3) for score in expected))
    assert len(distinct) > 2 or arch in ("bert", "electra", "xlnet"), "where a decoder reads depends on its padding"


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "roberta"])
@pytest.mark.parametrize("config_pad", [None, PAD_ID, 3, -1, EOS_ID])
def test_classifiers_and_judges(arch, config_pad):
    if arch == "roberta":
        config_pad = 1 if config_pad is None else config_pad
    model = classifier(arch, 2, config_pad)
    expected = alone(model, TEXTS)
    reward = ToxicityReward(model, tokenizer=tokenizer("<eos>"), toxic_label=1, batch_size=4)
    assert reward([""] * len(TEXTS), TEXTS) == pytest.approx(expected[:, 0].tolist(), abs=1e-4)
    assert reward.toxicity(TEXTS) == pytest.approx(expected.softmax(dim=1)[:, 1].tolist(), abs=1e-4)
    scalar = classifier(arch, 1, config_pad)
    judge = RewardJudge(PreferenceReward(scalar, tokenizer=tokenizer("<pad>"), append_eos=False))
    verdicts = judge([""] * len(TEXTS), TEXTS, TEXTS[::-1])
    scores = alone(scalar, TEXTS)[:, 0].tolist()
    assert verdicts == [(a > b) - (a < b) for a, b in zip(scores, scores[::-1], strict=True)]


def test_a_model_that_takes_no_account_of_the_mask_is_batched_by_length():
    """XLNet reads the last position of a batch, padded or not."""
    model = classifier("xlnet", 1, PAD_ID)
    reward = PreferenceReward(model, tokenizer=tokenizer("<pad>"), append_eos=False)
    widths: list[tuple[int, ...]] = []
    with pytest.warns(UserWarning, match=r"scores padded texts differently: texts are batched by length"):
        reward([""] * 2, TEXTS[:2])
    texts = [TEXTS[0], TEXTS[1], TEXTS[0]]
    expected = alone(model, texts)[:, 0].tolist()
    model.register_forward_pre_hook(lambda _, args, inputs: widths.append(inputs["input_ids"].shape), with_kwargs=True)
    assert reward([""] * 3, texts) == pytest.approx(expected, abs=1e-4)
    assert [shape[0] for shape in widths] == [1, 2]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "roberta"])
def test_texts_of_several_lengths_are_one_batch_of_a_model_that_minds_the_mask(arch):
    model, shapes = classifier(arch, 1, PAD_ID), []
    reward = PreferenceReward(model, tokenizer=tokenizer("<pad>"), append_eos=False)
    reward([""] * 2, TEXTS[:2])  # tries once whether padding matters
    model.register_forward_pre_hook(lambda _, args, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True)
    reward([""] * len(TEXTS), TEXTS)
    assert [shape[0] for shape in shapes] == [len(TEXTS)]


def test_encoder_decoders_are_batched_by_their_number_of_eos():
    model = classifier("bart", 1, EOS_ID)
    texts = ["the cat<eos>", "a small<eos> dog ran<eos>", "you<eos>", "it is<eos><eos>"]
    reward = PreferenceReward(model, tokenizer=tokenizer("<eos>"))
    assert reward([""] * 4, texts) == pytest.approx(alone(model, texts)[:, 0].tolist(), abs=1e-4)


def test_token_types_of_nothing_but_zeros_are_no_words():
    """GPT-2 adds the embedding of a token's type, if it is given one; RewardTrainer gives it none."""
    model = classifier("gpt2", 1, PAD_ID)
    typed = tokenizer("<pad>")
    typed.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in typed("a")
    reward = PreferenceReward(model, tokenizer=typed, append_eos=False)
    assert reward([""] * len(TEXTS), TEXTS) == pytest.approx(alone(model, TEXTS)[:, 0].tolist(), abs=1e-4)
