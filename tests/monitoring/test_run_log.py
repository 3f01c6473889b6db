# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Lines of the log, worked by hand: means over steps, speeds, evaluations beside training, and resuming."""

import json

import torch

from trl_ext.monitoring import RunLog, Speed


def one_process(tensor: torch.Tensor, operation: str = "sum") -> torch.Tensor:
    return tensor


def step(log: RunLog, loss: float, seconds: float = 1.0, skipped: bool = False) -> None:
    """An optimizer step on a rollout that is learned from twice."""
    log.losses.add({"loss": torch.tensor([[loss, 9.0]])}, torch.tensor([[True, False]]))
    metrics = log.take_step()
    log.end_step({} if skipped else metrics, skipped=skipped, seconds=seconds, steps_per_rollout=2)


def line(log: RunLog, **given: float) -> dict[str, float]:
    made = {"loss": -1.0, "learning_rate": 0.1, **given}
    log.complete(made, episodes=64)
    return made


def test_a_line_of_training_by_hand():
    log = RunLog(one_process)
    log.begin_rollout({"reward": 2.0}, Speed(40.0, 6.0), episodes=8)
    step(log, 1.0)
    step(log, 5.0, skipped=True)
    expected = {"reward": 2.0, "loss": 1.0, "skipped_minibatches": 0.5, "time/learn": 1.0, "tokens_per_second": 5.0}
    assert line(log) == {"learning_rate": 0.1, **expected, "episodes": 64}
    assert line(log) == {"learning_rate": 0.1, "episodes": 64}, "nothing is logged twice"
    assert log.take_step() == {}


def test_the_step_begins_again_where_memory_ran_out():
    log = RunLog(one_process)
    log.losses.add({"loss": torch.tensor([[7.0]])}, torch.tensor([[True]]))
    log.restart_step()
    step(log, 1.0)
    assert line(log)["loss"] == 1.0


def test_an_evaluation_leaves_training_alone_and_weighs_by_samples():
    log = RunLog(one_process)
    log.begin_rollout({"reward": 2.0}, Speed(40.0, 6.0), episodes=8)
    step(log, 1.0)
    before = log.state_dict()
    log.add_evaluated({"reward": 4.0, "loss": 0.0}, Speed(30.0, 2.0), seconds=1.0, samples=3)
    log.add_evaluated({"reward": 8.0, "loss": 0.0}, Speed(30.0, 2.0), seconds=1.0, samples=1)
    assert log.state_dict() == before
    expected = {"eval_reward": 5.0, "eval_loss": 0.0, "eval_time/learn": 1.0, "eval_tokens_per_second": 10.0}
    assert log.take_evaluation("eval") == expected and log.take_evaluation("eval") == {}


def test_a_resumed_run_logs_the_line_of_an_uninterrupted_one():
    first, second = RunLog(one_process), RunLog(one_process)
    first.begin_rollout({"reward": 2.0}, Speed(40.0, 6.0), episodes=8)
    step(first, 1.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for log in (first, second):
        step(log, 3.0)
    assert line(first) == line(second) and first.state_dict() == second.state_dict()


def test_samples_per_second_count_completions_of_this_call_of_train():
    log = RunLog(one_process)
    log.begin_rollout({}, Speed(1.0, 1.0), episodes=8)
    log.begin_run()
    log.begin_rollout({}, Speed(1.0, 1.0), episodes=8)
    last = {"train_samples_per_second": 99.0, "train_runtime": 4.0}
    log.complete(last, episodes=64)
    assert last["train_samples_per_second"] == 2.0
