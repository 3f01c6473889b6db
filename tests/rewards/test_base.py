# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import functools
import json
import pickle
import warnings
from typing import Any

import pytest
import torch
from trl.rewards import get_repetition_penalty_reward, think_format_reward

from trl_ext.rewards import (
    LengthReward,
    RewardRunner,
    RunningNormalization,
    WeightedSum,
    check_reward,
    completion_text,
    prompt_text,
    reward_name,
)
from trl_ext.rewards.base import full_text


def length(completions, **columns):
    return [float(len(completion)) for completion in completions]


def text_length(completions, **columns):
    return [float(len(completion_text(completion))) for completion in completions]


def test_names():
    assert reward_name(length) == "length"
    assert reward_name(functools.partial(functools.partial(length), a=1)) == "length"
    assert reward_name(LengthReward(3)) == "length"
    assert reward_name(get_repetition_penalty_reward()) == "repetition_penalty_reward"

    class Unnamed:
        def __call__(self, completions):
            return []

    assert reward_name(Unnamed()) == "Unnamed"


def test_completion_text_is_what_the_policy_wrote():
    conversation: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [{"name": "search"}]},
        {"role": "tool", "content": "IDIOT"},
        {"role": "assistant", "content": [{"type": "text", "text": "an"}, {"type": "text", "text": "swer"}]},
        {"role": "assistant", "content": [{"type": "image"}]},
        {"content": "end"},
    ]
    assert completion_text(conversation) == "answer\nend"
    assert completion_text("plain") == "plain"
    assert completion_text([]) == ""


def test_prompt_text_and_both_together():
    prompt: list[dict[str, Any]] = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hello"}]},
        {"role": "tool", "content": "IDIOT"},
    ]
    assert prompt_text(prompt) == "be kind\nhello"
    assert prompt_text("plain") == "plain"
    assert full_text("once", " more") == "once more"
    assert full_text(prompt, [{"role": "assistant", "content": "hi"}]) == "be kind\nhello\nhi"
    assert full_text(prompt, []) == "be kind\nhello"


# check_reward


def test_a_good_function_passes_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_reward(text_length)
        ours = check_reward(LengthReward(5, unit="characters"))
    assert report.name == "text_length"
    assert report.formats == ("plain", "conversational")
    assert len(report.values) == 4
    assert report.values[-1] == 0  # the empty completion
    assert report.warnings == () == ours.warnings


def test_a_function_for_conversations_only_passes():
    report = check_reward(think_format_reward)
    assert report.formats == ("conversational",)
    assert report.values == [0.0] * 4


def test_samples_and_columns_of_the_users_own():
    def matches(completions, solution):
        return [float(a == b) for a, b in zip(completions, solution, strict=True)]

    with pytest.warns(UserWarning, match="pickled"):
        report = check_reward(matches, ["p", "q"], ["a", "b"], solution=["a", "x"])
    assert report.values == [1.0, 0.0]
    with pytest.raises(TypeError, match=r"asks for \['solution'\]"):
        check_reward(matches)
    with pytest.raises(ValueError, match="'solution': 1"):
        check_reward(matches, ["p", "q"], ["a", "b"], solution=["a"])
    with pytest.raises(ValueError, match="only one of"):
        check_reward(matches, ["p"])


def test_async_functions_are_checked_too():
    async def judge(completions, **columns):
        return text_length(completions)

    with pytest.warns(UserWarning, match="pickled"):
        assert check_reward(judge).values[-1] == 0


def test_a_broken_contract_raises():
    def one_number(completions, **columns):
        return 1.0

    def first_only(completions, **columns):
        return [1.0]

    with pytest.raises(TypeError, match="one_number.*return a list"):
        check_reward(one_number)
    with pytest.raises(ValueError, match="1 rewards for 4"):
        check_reward(first_only)


def test_a_function_that_fails_on_every_format_raises():
    def divides(completions, **columns):
        return [1 / 0 for _ in completions]

    with pytest.raises(
        ValueError, match=r"'divides' failed on a sample \(line .*ZeroDivisionError: division by zero\)"
    ) as caught:
        check_reward(divides)
    assert f"line {divides.__code__.co_firstlineno + 1} of 'test_base.py' raises" in str(caught.value)


def test_the_failure_on_one_format_is_in_the_report():
    def of_messages(completions, **columns):
        return [float(len(completion[0]["content"])) for completion in completions]

    check = check_reward(of_messages)
    assert check.formats == ("conversational",) and list(check.failures) == ["plain"]
    assert isinstance(check.failures["plain"], TypeError)


def test_rewards_in_another_order_raise():
    def by_length(completions, **columns):
        return sorted(text_length(completions))

    def of_the_first(completions, **columns):
        return text_length(completions[:1]) * len(completions)

    for fn in (by_length, of_the_first):
        with pytest.raises(ValueError, match=f"'{fn.__name__}'.*in the order of the completions"):
            check_reward(fn)


def test_doubtful_functions_are_warned_about():
    calls = []

    def counts(completions, **columns):
        calls.append(1)
        return [float(len(calls))] * len(completions)

    def relative(completions, **columns):
        mean = sum(text_length(completions)) / len(completions)
        return [number - mean for number in text_length(completions)]

    def never(completions, **columns):
        return [None] * len(completions)

    for fn, message in [(counts, "second time"), (relative, "one by one"), (never, "None for every sample")]:
        with pytest.warns(UserWarning) as caught:
            report = check_reward(fn)
        # the first because these are functions inside a function
        assert [str(warning.message) for warning in caught] == list(report.warnings)
        assert "cannot be pickled" in report.warnings[0]
        assert message in report.warnings[1]
        assert len(report.warnings) == 2


def test_state_is_put_back():
    reward = RunningNormalization(text_length)
    reward(["p"] * 3, ["a", "bb", "ccc"])
    state = reward.state_dict()
    assert check_reward(reward).warnings == ()
    assert reward.state_dict() == state


def test_the_report_pickles():
    report = check_reward(text_length)
    assert pickle.loads(pickle.dumps(report)) == report


class _Module(torch.nn.Linear):
    """A reward that is a module: its weights are no state between calls."""

    def __init__(self):
        super().__init__(1, 1)

    def forward(self, completions, **columns):
        return [float(len(completion)) for completion in completions]


def test_the_weights_of_a_module_are_no_state():
    runner = RewardRunner([_Module(), WeightedSum([_Module()])])
    assert json.dumps(runner.state_dict()) == '{"weighted_sum": {"members": {}}}'


class _Tensors:
    """A state that no checkpoint can have."""

    __name__ = "tensors"

    def __call__(self, completions, **columns):
        return [float(len(completion)) for completion in completions]

    def state_dict(self):
        return {"mean": torch.zeros(1)}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("make", [RewardRunner, check_reward])
def test_a_state_that_is_no_json_is_refused_with_the_functions_name(make):
    with pytest.raises(ValueError, match=r"'tensors' has a `state_dict` that is no JSON \(.*Tensor.*numbers, texts"):
        make(_Tensors())


def test_equal_rewards_are_a_doubt_and_one_error_is_told_once():
    with pytest.warns(UserWarning, match="'constant' gives all samples the same reward"):
        check_reward(constant)
    with pytest.raises(ValueError, match=r"^Reward function 'fails' failed on a sample \([^:]*ValueError: no\)\.$"):
        check_reward(fails)


def test_token_rewards_with_equal_sums_are_no_doubt(recwarn):
    report = check_reward(first_or_last, ["p", "p"], ["ab", "cd"], completion_ids=[[1, 2], [3, 4]])
    assert report.warnings == () and not recwarn


def first_or_last(completions, completion_ids, **columns):
    return [[1.0, 0.0] if text == "ab" else [0.0, 1.0] for text in completions]


def constant(completions, **columns):
    return [1.0 for _ in completions]


def fails(completions, **columns):
    raise ValueError("no")
