# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions with state measure a finished policy with the state that its run had at the end."""

import json

import pytest
import torch

from tests import scripted
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext.actor_critic import ActorCritic
from trl_ext.chatting.opening import load, plan
from trl_ext.commands import main
from trl_ext.folders import commit
from trl_ext.interpolating.request import Request, prepare
from trl_ext.monitoring import PhaseProgress
from trl_ext.resuming import write_state
from trl_ext.rewards import Clipped, PreferenceReward, RewardRunner, RunningNormalization
from trl_ext.running.policy import scored, scored_after
from trl_ext.running.records import Reopened
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


@pytest.mark.parametrize("place", [".", "model", "checkpoint-5", "ema", "model/ema", "checkpoint-5/ema"])
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


class Seen:
    """A user's own reward with state: how often it was called, and what it returns."""

    def __init__(self):
        self.calls, self.__name__ = 0, "seen"

    def __call__(self, completions, **columns):
        self.calls += 1
        return [float(self.calls)] * len(completions)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


@pytest.mark.parametrize("wrap", [lambda fn: fn, lambda fn: Clipped(fn, -100, 100)], ids=["alone", "combined"])
def test_state_of_a_users_own_class_comes_back(wrap, tmp_path, recwarn):
    ran = RewardRunner(wrap(Seen()))
    for _ in range(3):
        ran(["p"], ["c"], [[1]], {})
    place = tmp_path / "checkpoint-5"
    place.mkdir()
    write_state(place, 0, {"configuration": {}, "rewards": ran.state_dict()})
    commit(place)
    runner = RewardRunner(wrap(Seen()))
    restore_rewards(runner, tmp_path)
    assert score(runner, "c") == [4.0]
    restore_rewards(RewardRunner(wrap(Seen())), tmp_path / "elsewhere" / "run")
    assert not recwarn, "a state that never was is no fault"


def test_the_calibration_of_a_reward_model_is_its_own(tmp_path):
    """Another reward model of the same name was calibrated in the run."""
    model = PreferenceReward(tiny_classifier(["good"]), tokenizer=tiny_tokenizer())
    runner = RewardRunner(model)
    place = tmp_path / "checkpoint-5"
    place.mkdir()
    state = {runner.names[0]: {"center": 7.0, "scale": 3.0, "calibrated": True}}
    write_state(place, 0, {"configuration": {}, "rewards": state})
    commit(place)
    restore_rewards(runner, tmp_path)
    assert (model.center, model.scale) == (0.0, 1.0)


@pytest.fixture
def world(tmp_path):
    """A run with a checkpoint, whose policy began as another model, prompts, and a reward with statistics."""
    checkpoint(tmp_path / "run", "a" * 4, "a" * 8)  # mean 6
    save_tiny(tmp_path / "start", tiny_causal_lm())
    trained = ActorCritic(str(tmp_path / "start"))
    with torch.no_grad():
        trained.causal_lm.lm_head.weight.mul_(-1.0)
    trained.save_pretrained(tmp_path / "run")
    tiny_tokenizer().save_pretrained(tmp_path / "run")
    (tmp_path / "scores.py").write_text(MODULE)
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"the cat {i}"}) for i in range(6)))
    return tmp_path


def test_two_models_compared_by_a_normalized_reward_differ(world):
    options = ["--reward", f"{world / 'scores.py'}:normalized", "--output", world / "out.json", "--num_resamples", 20]
    given = ["compare", world / "run", world / "start", "--prompts", world / "prompts.jsonl"]
    main([str(value) for value in (*given, "--max_completion_length", 5, *options)])
    row = json.loads((world / "out.json").read_text())["measures"]["rewards/normalized_letters"]
    assert abs(row["model"]["estimate"]) > 0.01 and abs(row["difference"]["estimate"]) > 0.01


def test_a_path_is_measured_with_the_state_of_the_run(world):
    """Completions are longer than those that the run has seen; by a mean of their own all rewards would be 0."""
    spec, sizes = f"{world / 'scores.py'}:normalized", ["--frontier_prompts", 4, "--frontier_samples", 2]
    given = [
        "interpolate",
        world / "run",
        "--eta",
        1,
        "--prompts",
        world / "prompts.jsonl",
        "--json",
        world / "out.json",
    ]
    main([str(value) for value in (*given, "--max_completion_length", 9, *sizes, "--reward", spec, "--judge", spec)])
    for point in json.loads((world / "out.json").read_text())["points"]:
        assert point["reward"] > 1 and point["judge"] > 1, point


def test_a_reopened_run_is_measured_with_the_state_that_it_had(world):
    trainer = scripted.trainer(world / "again", reward_funcs=RunningNormalization(letters))
    request = Request(*[None] * 5, (), *[None] * 4, (4, 2), 1, 8, 0, {}, {})
    _, task = prepare(request, world / "run", lambda: Reopened(trainer, {"prompt": ["a"]}, None))
    assert score(task.rewards, "a" * 10)[0] > 1


def test_a_chat_rewards_with_the_state_of_the_run(world):
    talk = load(plan(str(world / "run"), rewards=[f"{world / 'scores.py'}:normalized"]))
    assert score(talk.rewards, "a" * 10)[0] > 1


def test_what_was_measured_before_training_is_in_the_unit_after_it(tmp_path):
    """The engine gives the same completions at both times, and the reward has learned its unit in between."""
    trainer = scripted.trainer(tmp_path, reward_funcs=RunningNormalization(letters), eval_dataset=scripted.prompts(3))
    before = scored(trainer, PhaseProgress(enabled=False), "before")
    trainer.train()
    measured = scored_after(trainer, PhaseProgress(enabled=False), before)
    assert measured["before"].totals == measured["after"].totals != before.totals
    assert measured["before"].rewards == measured["after"].rewards and measured["before"].kl == before.kl
