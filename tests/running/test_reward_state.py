# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions with state measure a finished policy with the state that its run had at the end."""

import json

import pytest

from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.commands.compare import main
from trl_ext.folders import commit
from trl_ext.resuming import write_state
from trl_ext.rewards import RewardRunner, RunningNormalization
from trl_ext.running.reward_state import restore_rewards

MODULE = """
from trl_ext.rewards import RunningNormalization

def letters(completions, **columns):
    return [float(len(text)) for text in completions]

normalized = RunningNormalization(letters)
"""


def letters(completions, **columns):
    return [float(len(text)) for text in completions]


def score(runner: RewardRunner, *texts: str) -> list[float]:
    scores = runner([""] * len(texts), list(texts), [[1]] * len(texts), {}, update_state=False)
    return scores.total.tolist()


def checkpoint(folder, *texts: str, step: int = 5) -> None:
    """Write a checkpoint of a run whose policy has said these texts."""
    runner = RewardRunner(RunningNormalization(letters))
    runner([""] * len(texts), list(texts), [[1]] * len(texts), {})
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    write_state(place, 0, {"configuration": {}, "rewards": runner.state_dict()})
    commit(place)


@pytest.mark.parametrize("place", [".", "model", "checkpoint-5"])
def test_the_newest_checkpoint_gives_the_state(place, tmp_path):
    checkpoint(tmp_path, "a", "abc")  # mean 2, standard deviation 1
    if place == ".":
        checkpoint(tmp_path, "a" * 10, "a" * 14, step=10)
    runner = RewardRunner(RunningNormalization(letters))
    restore_rewards(runner, tmp_path / place)
    expected = [(6 - 12) / 2] if place == "." else [(6 - 2) / 1]
    assert score(runner, "a" * 6) == pytest.approx(expected, rel=0.5), "with the standard deviation of a sample"
    assert score(runner, "a" * 6)[0] * expected[0] > 0


def test_a_run_without_a_checkpoint_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match=r"'normalized_letters' keeps statistics of its run, and no checkpoint"):
        restore_rewards(RewardRunner(RunningNormalization(letters)), tmp_path)


def test_rewards_without_statistics_need_no_checkpoint(tmp_path, recwarn):
    restore_rewards(RewardRunner([letters]), tmp_path)
    restore_rewards(None, tmp_path)
    assert not recwarn


def test_two_models_compared_by_a_normalized_reward_differ(tmp_path):
    checkpoint(tmp_path / "a", "a" * 4, "a" * 8)
    save_tiny(tmp_path / "a", tiny_causal_lm(eos_token_id=[2, *range(40, 70)]))
    save_tiny(tmp_path / "b", tiny_causal_lm(seed=1))
    (tmp_path / "scores.py").write_text(MODULE)
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"the cat {i}"}) for i in range(6)))
    options = ["--reward", f"{tmp_path / 'scores.py'}:normalized", "--output", tmp_path / "out.json"]
    given = [tmp_path / "a", tmp_path / "b", "--prompts", tmp_path / "prompts.jsonl", "--max_completion_length", 5]
    main([str(value) for value in (*given, "--num_resamples", 20, *options)])
    row = json.loads((tmp_path / "out.json").read_text())["measures"]["rewards/normalized_letters"]
    assert abs(row["model"]["estimate"]) > 0.01 and abs(row["difference"]["estimate"]) > 0.01
