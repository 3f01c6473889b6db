# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Runs with rewards of single tokens: the same bits as a number where they are one, their own credit where not."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import scripted
from trl_ext.rewards import Clipped, RunningNormalization, WeightedSum


def at_the_end(completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[Any]:
    """The reward of `scripted` as a list; a number for every third sample and None for one in seven."""
    out: list[Any] = []
    for text, ids, value in zip(completions, completion_ids, scripted.reward(completions), strict=True):
        out.append(value if len(text) % 3 == 0 else [0.0] * (len(ids) - 1) + [value])
    return out


def for_letters(completion_ids: list[list[int]], **columns: Any) -> list[list[float]]:
    return [[(token % 7 - 3) / 4 for token in ids] for ids in completion_ids]


SETTINGS: list[dict[str, Any]] = [
    {},
    {
        "missing_eos_penalty": 0.7,
        "reward_clip_range": [0.0, 1.1],
        "reward_weights": [0.3, 1.7],
        "gamma": 0.9,
        "lam": 0.5,
        "whiten_rewards": True,
        "bootstrap_truncated": True,
    },
    {"reward_constraints": ["for_letters_summed <= 0.1"], "kl_coef": 0.2},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_list_of_zeros_with_the_score_at_its_end_trains_like_the_score(tmp_path: Path, settings: Any) -> None:
    def wrapped(reward: Any) -> Any:
        if not settings:
            return reward
        return [WeightedSum([RunningNormalization(reward), Clipped(reward, high=0.8)]), for_letters_summed]

    one = scripted.trainer(tmp_path / "a", reward_funcs=wrapped(scripted.reward), **settings)
    other = scripted.trainer(tmp_path / "b", reward_funcs=wrapped(at_the_end), **settings)
    for made in (one, other):
        made.train()
    ours, theirs = scripted.weights(one), scripted.weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    times = ("time/", "tokens_per_second", "rewards/")
    for first, second in zip(scripted.logs(one), scripted.logs(other), strict=True):
        for name, value in first.items():
            if not name.startswith(times):
                assert second[name] == value, name


def for_letters_summed(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [sum(row) for row in for_letters(completion_ids)]


def test_token_rewards_arrive_on_their_tokens_and_in_the_log(tmp_path: Path) -> None:
    made = scripted.trainer(
        tmp_path,
        reward_funcs=[for_letters, scripted.reward],
        reward_weights=[2.0, 1.0],
        missing_eos_penalty=0.5,
        kl_coef=0.0,
        gamma=0.9,
        lam=1.0,
        whiten_advantages=False,
    )
    rows = list(scripted.prompts(8))
    experience = made._collect(rows, made.progress, training=True)
    rollout, ids = experience.rollout, experience.batch.completion_ids
    assert ids is not None
    total = 0.0
    for i, row in enumerate(ids):
        expected = [2 * value for value in for_letters([row])[0]]
        expected[-1] += scripted.reward([experience.batch.completions[i]])[0]
        assert rollout.token_scores[i, : len(row)].tolist() == pytest.approx(expected)
        assert not rollout.token_scores[i, len(row) :].any()
        expected[-1] -= 0.0 if rollout.terminated[i] else 0.5
        assert (rollout.token_scores[i].sum() + rollout.scores[i]).item() == pytest.approx(sum(expected), abs=1e-5)
        total += sum(expected) / len(ids)
        # Lambda 1: the return is the discounted sum of the rewards still to come.
        returns = [sum(0.9**k * r for k, r in enumerate(expected[t:])) for t in range(len(row))]
        assert rollout.returns[i, : len(row)].tolist() == pytest.approx(returns, abs=1e-4)
    assert experience.metrics["reward"] == pytest.approx(total, abs=1e-5)
    sums = [sum(for_letters([row])[0]) for row in ids]
    assert experience.metrics["rewards/for_letters/mean"] == pytest.approx(sum(sums) / 8, abs=1e-6)
    table = made.samples.as_dict()
    assert table["for_letters"] == pytest.approx(sums, abs=1e-6)
    assert all(re.search(r". [+-]\d", text) and text.count(" ") >= 1 for text in table["earned most"])


def test_a_resumed_run_with_token_rewards_is_identical(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "reward_funcs": [RunningNormalization(for_letters), scripted.reward],
        "save_strategy": "steps",
        "save_steps": 3,  # between the two steps of the second rollout
    }
    whole = scripted.trainer(tmp_path / "whole", **settings)
    whole.train()
    settings["reward_funcs"] = [RunningNormalization(for_letters), scripted.reward]
    part = scripted.trainer(tmp_path / "part", **settings)
    part.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert part.state.global_step == whole.state.global_step == 4
    resumed = scripted.weights(part)
    assert all(torch.equal(value, resumed[name]) for name, value in scripted.weights(whole).items())
