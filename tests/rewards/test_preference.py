# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import pickle

import numpy as np
import pytest

from trl_ext.rewards import PreferenceReward

TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}{{ ending or '' }}"
PROMPTS = ["you are ", "the ", "a b c "]
COMPLETIONS = ["good", "bad day", ""]


def chat(texts, role):
    return [[{"role": role, "content": text.strip()}] for text in texts]


@pytest.fixture
def model(classifier):
    return classifier(["LABEL_0"])


def test_plain_text_is_prompt_and_completion(model, tokenizer, raw_logits):
    reward = PreferenceReward(model, tokenizer=tokenizer, center=1.5, scale=4.0, batch_size=2)
    logits = raw_logits(model, ["you are good", "the bad day", "a b c"])[:, 0].tolist()
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx([(logit - 1.5) / 4 for logit in logits], abs=1e-5)


def test_conversations_are_rendered_by_its_own_template(model, tokenizer, raw_logits):
    rendered = ["user : you are assistant : good", "user : the assistant : bad day"]
    expected = raw_logits(model, rendered, add_special_tokens=False)[:, 0].tolist()
    prompts, completions = chat(PROMPTS[:2], "user"), chat(COMPLETIONS[:2], "assistant")
    given = PreferenceReward(model, tokenizer=tokenizer, chat_template=TEMPLATE)
    assert given(prompts, completions) == pytest.approx(expected, abs=1e-5)
    tokenizer.chat_template = TEMPLATE
    ending = PreferenceReward(model, tokenizer=tokenizer, chat_template_kwargs={"ending": "day"})
    expected = raw_logits(model, [text + " day" for text in rendered], add_special_tokens=False)[:, 0].tolist()
    assert ending(prompts, completions) == pytest.approx(expected, abs=1e-5)


def test_no_chat_template_and_mixed_formats_are_refused(model, tokenizer):
    reward = PreferenceReward(model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="no chat template"):
        reward(chat(PROMPTS, "user"), chat(COMPLETIONS, "assistant"))
    with pytest.raises(ValueError, match="two strings or two lists"):
        reward(PROMPTS, chat(COMPLETIONS, "assistant"))


def test_several_labels_are_refused(classifier, tokenizer, saved):
    with pytest.raises(ValueError, match="has 2"):
        PreferenceReward(classifier(["a", "b"]), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="has 2"):
        PreferenceReward(saved(classifier(["a", "b"])))(PROMPTS, COMPLETIONS)


def test_calibrate_centres_and_scales_reference_completions(model, tokenizer):
    reward = PreferenceReward(model, tokenizer=tokenizer)
    raw = reward(PROMPTS, COMPLETIONS)
    center, scale = reward.calibrate(PROMPTS, COMPLETIONS)
    assert (center, scale) == pytest.approx((np.mean(raw), np.std(raw)), abs=1e-6)
    calibrated = reward(PROMPTS, COMPLETIONS)
    assert np.mean(calibrated) == pytest.approx(0, abs=1e-6)
    assert np.std(calibrated) == pytest.approx(1, abs=1e-6)
    other = PreferenceReward(model, tokenizer=tokenizer)
    other.load_state_dict(reward.state_dict())
    assert other(PROMPTS, COMPLETIONS) == calibrated


def test_a_center_and_a_scale_that_were_given_are_those_of_a_resumed_run(model, tokenizer):
    state = PreferenceReward(model, tokenizer=tokenizer).state_dict()
    resumed = PreferenceReward(model, tokenizer=tokenizer, center=5.0, scale=0.1)
    resumed.load_state_dict(state)
    assert (resumed.center, resumed.scale) == (5.0, 0.1)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_calibrate_needs_a_spread(model, tokenizer, n):
    with pytest.raises(ValueError, match=f"calibrate got {n} completions"):
        PreferenceReward(model, tokenizer=tokenizer).calibrate(["a"] * n, ["b"] * n)


def test_name_pickle_and_scale(model, saved):
    reward = PreferenceReward(saved(model), center=2.0)
    assert reward.__name__ == "tiny-model"
    values = reward(PROMPTS, COMPLETIONS)
    assert pickle.loads(pickle.dumps(reward))(PROMPTS, COMPLETIONS) == values
    with pytest.raises(ValueError, match="scale is 0"):
        PreferenceReward("x", scale=0)
