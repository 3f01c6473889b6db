# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import copy
import math
import pickle
from typing import Any

import pytest
import torch
from transformers import (
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from trl_ext.rewards import ToxicityReward
from trl_ext.rewards.scoring import SequenceScorer

TEXTS = ["a b", "you are bad", "", "the good day a b c d e", "c", "a a a a a a a a a a", "day day"]
MULTI = {"problem_type": "multi_label_classification"}


def score(reward, completions, prompts=None):
    return reward(prompts or [""] * len(completions), completions)


# Logits are the classifier's bias, so that every expected value is arithmetic on two or three numbers.
@pytest.mark.parametrize(
    ("labels", "bias", "options", "logit", "log_odds", "toxicity"),
    [
        (["nothate", "hate"], [2.0, -1.0], {}, 2.0, 3.0, 0.047426),
        (["toxic", "neutral"], [2.0, -1.0], {}, -1.0, -3.0, 0.952574),
        (["hate speech", "normal", "offensive"], [0.0, 0.0, 0.0], {}, 0.0, -math.log(2), 2 / 3),
        (["toxic", "severe_toxic", "threat"], [0.5, 3.0, 3.0], MULTI, -0.5, -0.5, 0.622459),
        (["insult", "threat", "neutral"], [0.5, 2.0, 9.0], MULTI, -2.0, -2.0, 0.880797),
        (["toxicity"], [1.5], {}, -1.5, -1.5, 0.817574),
    ],
)
def test_outputs_by_hand(classifier, tokenizer, labels, bias, options, logit, log_odds, toxicity):
    model = classifier(labels, bias, **options)
    cases: list[tuple[Any, float]] = [("logit", logit), ("log_odds", log_odds), ("probability", 1 - toxicity)]
    for output, expected in cases:
        reward = ToxicityReward(model, tokenizer=tokenizer, output=output)
        assert score(reward, ["a b"]) == pytest.approx([expected], abs=1e-5)
        assert reward.toxicity(["a b"]) == pytest.approx([toxicity], abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "toxic"),
    [
        (["non-toxic", "toxic"], 1),
        (["not_toxic", "toxic"], 1),
        (["NON_HATE", "HATE"], 1),
        (["Hateful", "Neutral"], 0),
        (["inoffensive", "offensive-language"], 1),
        (["unsafe", "safe"], 0),
        (["joy", "toxic", "fear"], 1),
    ],
)
def test_toxic_label_is_found_by_name(classifier, tokenizer, labels, toxic):
    assert ToxicityReward(classifier(labels), tokenizer=tokenizer).toxic_indices() == [toxic]


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (["LABEL_0", "LABEL_1"], {}),
        (["LABEL_0"], {}),
        (["joy", "fear", "anger"], MULTI),
        (["positive", "negative"], {}),
        (["toxic", "insult"], {}),
    ],
)
def test_labels_that_do_not_tell_ask_for_toxic_label(classifier, tokenizer, labels, options):
    with pytest.raises(ValueError, match=r"toxic_label="):
        ToxicityReward(classifier(labels, **options), tokenizer=tokenizer)


def test_user_names_the_toxic_label(classifier, tokenizer):
    model = classifier(["LABEL_0", "LABEL_1", "LABEL_2"], [1.0, 2.0, 4.0])
    for label in ("LABEL_1", "label-1", 1):
        reward = ToxicityReward(model, tokenizer=tokenizer, toxic_label=label)
        assert reward.toxicity(["a"]) == pytest.approx([math.e**2 / (math.e + math.e**2 + math.e**4)], abs=1e-6)
    two = ToxicityReward(model, tokenizer=tokenizer, toxic_label=["LABEL_0", 1])
    assert score(two, ["a"]) == pytest.approx([4.0])  # one label is left: its raw logit
    with pytest.raises(ValueError, match="LABEL_7.*not among"):
        ToxicityReward(model, tokenizer=tokenizer, toxic_label="LABEL_7")
    with pytest.raises(ValueError, match="leave one out"):
        ToxicityReward(model, tokenizer=tokenizer, toxic_label=[0, 1, 2])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_sorted_batches_equal_one_by_one_in_the_original_order(classifier, tokenizer, raw_logits, batch_size):
    model = classifier(["neutral", "toxic"])
    reward = ToxicityReward(model, tokenizer=tokenizer, batch_size=batch_size)
    expected = raw_logits(model, TEXTS)[:, 0].tolist()
    assert len(set(expected)) == len(TEXTS)
    assert score(reward, TEXTS) == pytest.approx(expected, abs=1e-5)


def test_progress_adds_up(classifier, tokenizer):
    steps: list[int] = []
    reward = ToxicityReward(classifier(["neutral", "toxic"]), tokenizer=tokenizer, batch_size=3)
    reward([""] * 7, TEXTS, on_progress=steps.append)
    assert steps == [3, 3, 1]
    assert reward([], []) == []


def test_batches_hold_texts_of_similar_length(classifier, tokenizer):
    model = classifier(["neutral", "toxic"])
    widths = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    texts = ["a", "a b c d e a b c", "b", "e d c b a e d c"]
    score(ToxicityReward(model, tokenizer=tokenizer, batch_size=2), texts)
    assert widths[-2:] == [10, 3]  # with [CLS] and [SEP]; unsorted it would be [10, 10]


def test_dropout_is_off(classifier, tokenizer, raw_logits):
    model = classifier(["neutral", "toxic"], hidden_dropout_prob=0.5)
    reward = ToxicityReward(model, tokenizer=tokenizer)
    model.train()
    assert score(reward, TEXTS) == pytest.approx(raw_logits(model, TEXTS)[:, 0].tolist(), abs=1e-5)


def test_long_texts_keep_the_completion(classifier, tokenizer, raw_logits):
    model = classifier(["neutral", "toxic"])
    prompt, completion = "a b " * 40, "you are bad"
    joined = ToxicityReward(model, tokenizer=tokenizer, include_prompt=True, max_length=5)
    assert tokenizer.truncation_side == "right"  # the user's own is left alone
    assert score(joined, [completion], [prompt]) == pytest.approx(raw_logits(model, [completion])[:, 0].tolist())
    alone = ToxicityReward(model, tokenizer=tokenizer, max_length=5)
    expected = raw_logits(model, ["you are bad"])[:, 0].tolist()
    assert score(alone, ["you are bad day day day"]) == pytest.approx(expected)
    assert score(alone, ["a b " * 40]) != score(alone, ["a b"])  # the model's own limit, 32, holds by itself


def test_include_prompt_joins_text_and_conversations(classifier, tokenizer, raw_logits):
    model = classifier(["neutral", "toxic"])
    reward = ToxicityReward(model, tokenizer=tokenizer, include_prompt=True)
    expected = raw_logits(model, ["a b good day"])[:, 0].tolist()
    assert score(reward, [" good day"], ["a b"]) == pytest.approx(expected, abs=1e-5)
    prompt, completion = [{"role": "user", "content": "a b"}], [{"role": "assistant", "content": "good day"}]
    assert score(reward, [completion], [prompt]) == pytest.approx(expected, abs=1e-5)


def test_by_name_is_lazy_and_pickles_without_the_model(classifier, saved, raw_logits):
    model = classifier(["neutral", "toxic"])
    name = saved(model)
    reward = ToxicityReward(name, device="cpu")
    before = pickle.dumps(reward)
    expected = raw_logits(model, TEXTS)[:, 0].tolist()
    assert score(reward, TEXTS) == pytest.approx(expected, abs=1e-5)
    after = pickle.dumps(reward)
    assert len(after) == len(before) < 5000
    assert score(pickle.loads(after), TEXTS) == pytest.approx(expected, abs=1e-5)
    assert copy.deepcopy(reward).scorer._model is None


def test_by_object_pickles_with_the_model(classifier, tokenizer):
    reward = ToxicityReward(classifier(["neutral", "toxic"]), tokenizer=tokenizer)
    assert score(pickle.loads(pickle.dumps(reward)), TEXTS) == score(reward, TEXTS)


def test_dtype_and_device(classifier, tokenizer, saved):
    model = classifier(["neutral", "toxic"])
    reward = ToxicityReward(saved(model), dtype="bfloat16", device="cpu")
    assert reward.scorer.model.dtype == torch.bfloat16
    single = score(ToxicityReward(model, tokenizer=tokenizer, device="cpu", dtype=torch.float32), TEXTS)
    assert score(reward, TEXTS) == pytest.approx(single, rel=0.1, abs=0.1)


def test_a_wrong_model_is_refused_with_a_hint(classifier, tmp_path, saved):
    with pytest.raises(ValueError, match="cannot be loaded as a sequence-classification model"):
        score(ToxicityReward(str(tmp_path / "nothing")), ["a"])
    body = saved(BertModel(classifier(["neutral", "toxic"]).config))
    with pytest.raises(ValueError, match="no weights for .*classifier"):
        score(ToxicityReward(body), ["a"])
    with pytest.raises(ValueError, match="pass `tokenizer`"):
        ToxicityReward(classifier(["neutral", "toxic"]))
    for options in ({"output": "score"}, {"batch_size": 0}, {"max_length": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ToxicityReward("x", **options)


def test_roberta_positions_are_not_overrun(tokenizer):
    config = RobertaConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=12,
        pad_token_id=1,
        id2label={0: "nothate", 1: "hate"},
    )
    tokenizer.model_max_length = int(1e30)
    reward = ToxicityReward(RobertaForSequenceClassification(config), tokenizer=tokenizer)
    # positions start behind the padding index 1: 10 tokens fit, of which 8 are words
    assert score(reward, ["a " * 50]) == score(reward, ["a " * 8]) != score(reward, ["a " * 7])


@pytest.mark.parametrize("config_pad", [None, 4])
def test_decoder_without_a_pad_token(no_pad_tokenizer, raw_logits, config_pad):
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
        id2label={0: "neutral", 1: "toxic"},
        pad_token_id=config_pad,
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    texts = ["a", "a b c <eos>", "you are bad", "[PAD]", "d e"]  # ends in <eos>, and in the id 0
    expected = raw_logits(model, texts, no_pad_tokenizer)[:, 0].tolist()  # the model's own config says where it reads
    reward = ToxicityReward(model, tokenizer=no_pad_tokenizer)
    assert score(reward, texts) == pytest.approx(expected, abs=1e-5)
    assert no_pad_tokenizer.pad_token is None
    assert math.isfinite(score(reward, [""])[0])  # this tokenizer makes no token of an empty text


def test_decoder_whose_config_lacks_the_pad_id(tokenizer, raw_logits):
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    expected = raw_logits(model, TEXTS)
    got = SequenceScorer(model, tokenizer=tokenizer, batch_size=4).logits(TEXTS)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
