# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Which column holds the prompts, and what of its values is the prompt."""

import pytest

from trl_ext.text.prompt_column import find_prompt_column, read_prompt

SYSTEM = {"role": "system", "content": "be brief"}
USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "clock"}]}
RESULT = {"role": "tool", "content": "noon"}


@pytest.mark.parametrize(
    ("columns", "given", "found"),
    [
        (["prompt", "messages", "conversations"], "prompt", "prompt"),
        (["messages", "chosen"], "prompt", "messages"),
        (["id", "conversations"], "prompt", "conversations"),
        (["messages", "conversations"], "conversations", "conversations"),
        (["prompt", "question"], "question", "question"),
        (["prompt", "messages"], "question", None),
        (["text"], "prompt", None),
    ],
)
def test_the_column_that_holds_the_prompts(columns, given, found):
    assert find_prompt_column(columns, given) == found


@pytest.mark.parametrize(
    ("value", "column", "prompt"),
    [
        ("a", "question", "a"),
        ({"text": "a", "toxicity": 0.1}, "prompt", "a"),
        ([SYSTEM, USER], "messages", [SYSTEM, USER]),
        ([SYSTEM, USER, ANSWER], "messages", [SYSTEM, USER]),
        ([USER, ANSWER, USER, ANSWER], "any_other_name", [USER, ANSWER, USER]),
        ([USER, CALL, RESULT, ANSWER], "messages", [USER, CALL, RESULT]),
        ([USER, ANSWER], "prompt", [USER, ANSWER]),  # TRL: the beginning of an answer
        (
            [
                {"from": "system", "value": "be brief", "weight": None},
                {"from": "human", "value": "hi", "weight": None},
                {"from": "gpt", "value": "hello", "weight": 1},
            ],
            "conversations",
            [SYSTEM, USER],
        ),
        ([{"from": "human", "value": "hi", "role": None, "content": None}], "prompt", [USER]),
        ([{"from": "user", "value": "hi"}, {"from": "assistant", "value": "hello"}], "conversations", [USER]),
        ([USER | {"from": "human"}, ANSWER], "messages", [USER | {"from": "human"}]),
        (None, "messages", None),
        ([], "messages", []),
        ([5, 6], "prompt", [5, 6]),
    ],
)
def test_the_prompt_in_a_value(value, column, prompt):
    before = repr(value)
    assert read_prompt(value, column) == prompt
    assert repr(value) == before, "the row of the dataset stays as it is"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([ANSWER], "no message before the answer"),
        ([SYSTEM, ANSWER], "no message before the answer"),
        ([USER, ANSWER, ANSWER], "ends with two messages of the assistant"),
    ],
)
def test_a_conversation_without_a_clear_prompt_is_refused(messages, reason):
    with pytest.raises(ValueError, match=reason):
        read_prompt(messages, "messages")
