# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Prompts in other columns than "prompt": what the policy is asked, and what reward functions see."""

from typing import Any

import pytest
from datasets import Dataset

from tests import scripted
from tests.tiny_models import tiny_tokenizer

CHAT = [
    [{"from": "human", "value": f"question {i}"}, {"from": "gpt", "value": f"answer {i}"}] for i in range(8)
]  # fmt: skip


def asked(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {i}"}]


class Seen:
    """A reward function that keeps the arguments of its first call."""

    __name__ = "seen"

    def __init__(self) -> None:
        self.arguments: dict[str, Any] = {}

    def __call__(self, **arguments: Any) -> list[float]:
        self.arguments = self.arguments or {name: arguments[name] for name in arguments if name != "trainer_state"}
        return [0.0] * len(arguments["completions"])


def seen(folder, columns: dict[str, list], **settings: Any) -> dict[str, Any]:
    reward = Seen()
    defaults = {"shuffle_dataset": False, "max_steps": 1, "total_episodes": None, "reward_funcs": reward}
    made = scripted.trainer(
        folder,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tiny_tokenizer(chat_template=True),
        **{**defaults, **settings},
    )
    made.train()
    return reward.arguments


def test_a_reward_function_sees_the_conversation_with_its_answer(tmp_path):
    arguments = seen(tmp_path, {"conversations": CHAT, "id": list(range(8))})
    assert arguments["prompts"] == [asked(i) for i in range(8)]
    assert [turns[-1]["value"] for turns in arguments["conversations"]] == [f"answer {i}" for i in range(8)]
    assert arguments["id"] == list(range(8))
    assert arguments["completions"][0][0]["role"] == "assistant"


@pytest.mark.parametrize("unused", [False, True])
def test_the_named_column_is_the_prompt_beside_a_column_prompt(tmp_path, unused):
    questions, others = ([f"{word} {i}" for i in range(8)] for word in ("question", "other"))
    columns = {"prompt": others, "question": questions, "messages": CHAT}
    with pytest.warns(UserWarning, match="has a column 'prompt' beside 'question'"):
        arguments = seen(tmp_path, columns, prompt_column="question", remove_unused_columns=unused)
    assert arguments["prompts"] == arguments["question"] == questions
    assert "prompt" not in arguments and ("messages" in arguments) == (not unused)


def test_training_and_evaluation_may_have_their_prompts_in_different_columns(tmp_path):
    reward = Seen()
    made = scripted.trainer(
        tmp_path,
        train_dataset=Dataset.from_dict({"prompt": [asked(i) for i in range(8)]}),
        eval_dataset=Dataset.from_dict({"conversations": CHAT}),
        processing_class=tiny_tokenizer(chat_template=True),
        reward_funcs=reward,
    )
    made.evaluate()
    assert reward.arguments["prompts"] == [asked(i) for i in range(8)]
