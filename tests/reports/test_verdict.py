# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The sentences about a run, and the words for its numbers."""

import math
from typing import Any

import pytest
from rich.console import Console

from trl_ext.evaluation.quantities import compared, duration, interval_text, quantity, value_text
from trl_ext.reports import Report
from trl_ext.reports.summary import print_before_after
from trl_ext.reports.tiles import tiles
from trl_ext.reports.verdict import is_met, missed_goals, verdict

DETOX: dict[str, Any] = {
    **{"toxicity_before": 0.5, "toxicity_after": 0.1, "toxicity_ci95_after": [0.08, 0.125]},
    **{"toxicity_change_ci95": [-0.45, -0.35], "reward_before": 0.0, "reward_after": 2.0},
    **{"mean_length_before": 10.0, "mean_length_after": 5.0, "kl": 0.9, "episodes": 24576, "train_seconds": 161.0},
}
GOALS = {"toxicity_after": ("<=", 0.125), "mean_length_after": (">=", 8.0)}
ORIGIN = {"model": "lm", "rewards": ["toxicity", "length"]}


def test_a_finished_run_by_hand() -> None:
    report = Report("t", summary=DETOX, thresholds=GOALS, origin=ORIGIN, kl_target=1.0)
    assert verdict(report) == (
        "Toxicity fell from 50.0% to 10.0% (95% interval 8.0% to 12.5%). 1 of 2 goals passed; missed: mean length. "
        "`lm` learned from `toxicity` and `length` for 24,576 episodes in 2 min 41 s. The policy moved 0.9 nats per "
        "completion from the initial model, 90% of its KL target of 1."
    )


@pytest.mark.parametrize(
    ("summary", "sentence"),
    [
        ({"reward_before": 0.1, "reward_after": 0.5, "reward_change_ci95": [0.3, 0.5]}, "Reward rose from 0.1 to 0.5."),
        (
            {"reward_before": 0.1, "reward_after": 0.5, "reward_change_ci95": [-0.1, 0.9]},
            "Reward did not change measurably: 0.1 before, 0.5 after; 95% interval of the change -0.1 to 0.9.",
        ),
        ({"reward_before": 0.1, "reward_after": 0.1}, "Reward did not change measurably: 0.1 before, 0.1 after."),
        ({"reward_before": 0.1, "reward_after": None}, ""),
        ({}, ""),
    ],
)
def test_a_change_within_its_interval_is_none(summary: dict[str, Any], sentence: str) -> None:
    assert verdict(Report("t", summary=summary)) == sentence


@pytest.mark.parametrize(
    ("kl", "end"),
    [
        (0.2, "20% of its KL target of 1: train longer, or with a higher learning rate, to use more of it."),
        (1.2, "120% of its KL target of 1."),
        (2.0, "200% of its KL target of 1: too far; the controller did not hold it."),
        (-0.001, "0% of its KL target of 1: train longer, or with a higher learning rate, to use more of it."),
    ],
)
def test_the_kl_against_its_target(kl: float, end: str) -> None:
    assert verdict(Report("t", summary={"kl": kl}, kl_target=1.0)).endswith(end)
    assert verdict(Report("t", summary={"kl": kl})).endswith("from the initial model, without a target.")


def test_a_constant_reward_is_the_cause_before_any_advice() -> None:
    same = [{"reward": 0.1, "reward_std": 1e-9}, {"reward": 0.3, "reward_std": 0.0}, {"train_runtime": 3.0}]
    said = verdict(Report("t", summary={"kl": 0.0}, kl_target=1.0, log_history=same))
    assert said == (
        "In every line of the log all completions have the same reward, so the policy could not learn from it: check "
        "the reward function, or give a reward that tells completions apart. The policy moved 0 nats per completion "
        "from the initial model, 0% of its KL target of 1."
    )
    for other in ({"reward": 0.1, "reward_std": 0.01}, {"reward": 0.1, "reward_std": 0.0, "constraints/a/bound": 1.0}):
        assert "same reward" not in verdict(Report("t", summary={"kl": 0.0}, log_history=[*same, other]))


def test_an_unfinished_run_says_so_first() -> None:
    history = [{"reward": 0.25}, {"reward": 0.75}]
    report = Report("t", log_history=history, thresholds=GOALS, finished=False, step=40, max_steps=192)
    assert verdict(report) == (
        "Not finished: this is the run at step 40 of 192. Reward in training: 0.25 at first, 0.75 at the last log."
    )
    assert verdict(Report("t", finished=False)) == "Not finished: this is the run before its first checkpoint."


def test_goals() -> None:
    assert is_met("kl", 1.5, "<=", 1.5) and is_met("kl", 1.5, ">=", 1.5) and not is_met("kl", 1.6, "<=", 1.5)
    assert not any(is_met("kl", value, "<=", 1.5) for value in (None, math.nan, "text"))
    assert missed_goals(DETOX, GOALS) == ["mean length"]
    with pytest.raises(ValueError, match="'kl' has the relation '<'"):
        is_met("kl", 1.0, "<", 1.5)


def test_words_of_quantities() -> None:
    assert quantity("mean_length_after") == quantity("mean_length") == ("mean length", "tokens", False, None)
    assert quantity("rewards/brevity_before").label == "reward brevity"
    assert quantity("my_own_number").label == "my own number"
    assert compared({"a_before": 1, "a_ci95_before": [0, 2], "b_after": 2, "kl": 3}) == ["a", "b"]
    alone = {"reward_before": 1, "reward_after": 2, "rewards/a_before": 1, "rewards/a_after": 2}
    assert compared(alone) == ["reward"], "the same numbers once"
    assert compared(alone | {"rewards/a_after": 4}) == ["reward", "rewards/a"], "with a weight they differ"
    assert value_text("toxicity_after", 0.1234) == "12.3%" and value_text("kl", 12345.6) == "12,346"
    assert (value_text("kl", None), value_text("toxicity", None), value_text("episodes", 3840)) == ("–", "–", "3,840")
    assert interval_text("toxicity", [0.1, 0.25]) == "10.0% to 25.0%" and interval_text("kl", [None, 1.0]) == ""
    assert [duration(s) for s in (0.4, 59.7, 161, 11130)] == ["0 s", "1 min 0 s", "2 min 41 s", "3 h 5 min"]


def test_terminal_and_tiles_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("t", summary=DETOX, thresholds=GOALS, kl_target=1.0)
    print_before_after("t", DETOX, GOALS, Console(width=120))
    printed, page = " ".join(capsys.readouterr().out.split()), tiles(report)
    for words in ("50.0%", "10.0%", "8.0% to 12.5%", "at most 12.5%", "at least 8", "passed", "missed", "0.9"):
        assert words in printed and words in page
    assert "target 1: 90% of it used" in page and "trained in 2 min 41 s, 153 episodes a second" in page


def test_few_components_have_tiles_and_many_do_not() -> None:
    def labels(count: int) -> int:
        summary = {f"rewards/r{i}_{time}": float(i) for i in range(count) for time in ("before", "after")}
        return tiles(Report("t", summary={"reward_before": 1.0, "reward_after": 2.0, **summary})).count("<li>") - 1

    assert [labels(count) for count in (1, 2, 4, 5)] == [0, 2, 4, 0]
