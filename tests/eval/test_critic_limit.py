# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The largest explained variance of any critic, against coins whose limits are known."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eval.quality import critic_limit
from tests.scripted import trainer
from trl_ext.evaluation.sampling import Policy
from trl_ext.experience.engines import Completions
from trl_ext.rewards import RewardRunner
from trl_ext.running.policy import policy_of

HEAD, TAIL, LENGTH = 5, 6, 3


def heads(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(row.count(HEAD)) for row in completion_ids]


def toss(model: Any, prompt_ids: list[list[int]], on_progress: Any = None) -> Completions:
    """Draw LENGTH fair coins, of which a continuation needs fewer."""
    coins = torch.where(torch.rand(len(prompt_ids), LENGTH) < 0.5, HEAD, TAIL).tolist()
    return Completions(coins, [False] * len(prompt_ids), None)


@pytest.fixture
def policy(tmp_path) -> Policy:
    return policy_of(trainer(tmp_path))._replace(engine=toss)


def test_limit_of_coins(policy: Policy) -> None:
    torch.manual_seed(0)
    states = critic_limit.branch(policy, RewardRunner(heads), ["the cat"] * 600, 4, LENGTH, None)
    # With t of 3 coins known, (3 - t) / 4 of a variance of 3 / 4 is chance: 0, 1/3 and 2/3 can be explained.
    summary = critic_limit.summarize(states)
    assert summary["by_position"] == pytest.approx([0, 1 / 3, 2 / 3], abs=0.07)
    low, high = summary["limit_ci95"]
    assert low < summary["limit"] < high and summary["limit"] == pytest.approx(1 / 3, abs=0.05)
    assert (summary["completions"], summary["branches"]) == (600, 4)
    # Two branches estimate the same limit: the variance within a state has no bias.
    assert critic_limit.limit(states._replace(branched=states.branched[:, :2])) == pytest.approx(1 / 3, abs=0.06)


def test_a_state_keeps_its_beginning_and_the_length_limit(policy: Policy) -> None:
    seen: list[list[int]] = []

    def reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        seen.extend(completion_ids)
        return [0.0] * len(completion_ids)

    states = critic_limit.branch(policy, RewardRunner(reward), ["a", "the cat"], 2, LENGTH, None)
    own, branched = seen[:2], seen[2:]
    assert states.position.tolist() == [0, 1, 2] * 2 and states.completion.tolist() == [0] * 3 + [1] * 3
    assert all(len(row) == LENGTH for row in seen) and len(branched) == 12
    for first in own:
        for place in (1, 2):
            assert sum(row[:place] == first[:place] for row in branched) >= 2


def test_completions_that_the_bootstrap_chooses_twice_count_twice() -> None:
    column = torch.tensor([0, 0, 1, 2, 2, 2])
    states = critic_limit.Branches(column, column, column.double(), torch.stack([column, column], 1).double())
    assert critic_limit.of_completions(states, [2, 0, 2]).completion.tolist() == [2, 2, 2, 0, 0, 2, 2, 2]


def test_command(tmp_path, monkeypatch, capsys) -> None:
    made = trainer(tmp_path / "run")
    monkeypatch.setattr(critic_limit, "reopen", lambda folder: SimpleNamespace(trainer=made))
    output = tmp_path / "limit.json"
    command = [str(tmp_path / "run"), "--completions", "6", "--branches", "2", "--output", str(output)]
    assert critic_limit.main(command) == 0
    assert json.loads(output.read_text())["completions"] == 6
    assert "Largest explained variance of any critic" in capsys.readouterr().out
    assert critic_limit.main([str(tmp_path), "--branches", "1"]) == 2
    assert "--branches is 1; a variance needs two." in capsys.readouterr().err
