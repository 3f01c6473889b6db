# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Prompt and completion as one conversation: a turn that the prompt has begun is one turn."""

from pathlib import Path

import pytest
import trl
from trl import apply_chat_template

from tests.tiny_models import tiny_classifier, tiny_tokenizer
from trl_ext.rewards import PreferenceReward
from trl_ext.rewards.base import conversation, full_text

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
USER = {"role": "user", "content": "the cat"}
BEGUN = {"role": "assistant", "content": "Sure, the"}
WRITTEN = {"role": "assistant", "content": " dog ran"}


def test_a_begun_turn_and_its_completion_are_one_message():
    assert conversation([USER, BEGUN], [WRITTEN]) == [USER, {"role": "assistant", "content": "Sure, the dog ran"}]
    tool = {"role": "tool", "content": "42"}
    assert conversation([USER, BEGUN], [WRITTEN, tool, WRITTEN])[1:] == [
        {"role": "assistant", "content": "Sure, the dog ran"},
        tool,
        WRITTEN,
    ]
    assert conversation([USER], [WRITTEN]) == [USER, WRITTEN]
    assert conversation([USER, BEGUN], [tool]) == [USER, BEGUN, tool], "no continuation"
    assert conversation([], [WRITTEN]) == [WRITTEN] and conversation([USER, BEGUN], []) == [USER, BEGUN]


def test_what_is_given_stays_as_it_is_and_other_keys_are_kept():
    begun = {"role": "assistant", "content": [{"type": "text", "text": "Sure,"}], "reasoning_content": "hm"}
    prompt = [USER, begun]
    assert conversation(prompt, [WRITTEN])[1] == {
        "role": "assistant", "content": "Sure, dog ran", "reasoning_content": "hm",
    }  # fmt: skip
    assert prompt == [USER, begun] and begun["content"] == [{"type": "text", "text": "Sure,"}]
    image = {"role": "assistant", "content": [{"type": "image"}]}
    assert conversation([image], [WRITTEN])[0]["content"] == [{"type": "image"}, {"type": "text", "text": " dog ran"}]


def test_full_text_continues_a_begun_turn_without_a_line_break():
    assert full_text([USER, BEGUN], [WRITTEN]) == "the cat\nSure, the dog ran"
    assert full_text([USER], [WRITTEN]) == "the cat\n dog ran"


@pytest.mark.parametrize(
    "template", ["qwen2_5", "qwen3_instruct_2507", "llama3", "gemma", "gemma3", "phi3", "phi3_5", "qwen3", "cohere"]
)
def test_the_reward_model_reads_what_the_policy_wrote(template):
    """The text that the policy continues, with its completion behind, begins what the reward model reads."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    model = tiny_classifier(["score"], "llama")
    seen: list[list[int]] = []
    model.register_forward_pre_hook(lambda _, args, inputs: seen.extend(inputs["input_ids"].tolist()), with_kwargs=True)
    PreferenceReward(model, tokenizer=tokenizer, max_length=4096)([[USER, BEGUN]], [[WRITTEN]])
    read = tokenizer.decode(seen[-1])
    prompt = apply_chat_template({"prompt": [USER, BEGUN]}, tokenizer)["prompt"]
    assert read.startswith(prompt + WRITTEN["content"])
    assert read.count("Sure, the dog ran") == 1
