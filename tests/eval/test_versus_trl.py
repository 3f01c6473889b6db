# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The benchmark against TRL's last PPOTrainer: what counts as what, and the command from end to end."""

import dataclasses
import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from eval.performance import random_models, turns, versus_trl
from eval.performance.progress import TimedProgress
from eval.performance.stopwatch import Stopwatch, timed_functions

QUICK = versus_trl.Run(**versus_trl.QUICK, vocab_size=64, completion=4)
needs_trls_ppo = pytest.mark.skipif(
    importlib.util.find_spec("trl.experimental.ppo") is None, reason="TRL has a PPOTrainer up to 1.12 only"
)


class Clock(Stopwatch):
    """A stopwatch of which the test moves the hand."""

    time = 0.0

    def now(self) -> float:
        return self.time

    def takes(self, seconds: float):
        """A function that takes so long."""

        def function(*args):
            self.time += seconds

        return function


def test_the_functions_of_trls_trainer_count_towards_their_phases():
    clock, scorer, critic = Clock("cpu", steps=1), object(), object()
    module = SimpleNamespace(
        batch_generation=clock.takes(1.0),
        get_reward=clock.takes(0.25),
        forward=clock.takes(2.0),
        selective_log_softmax=clock.takes(0.5),
    )
    untouched = dict(vars(module))
    clock.on_train_begin(None, None, None)
    with timed_functions(module, scorer, clock):
        for step in (1, 2):
            with torch.no_grad():
                module.batch_generation()
                module.get_reward(scorer)
                module.get_reward(critic)
                module.forward()
                module.selective_log_softmax()
            module.forward()
            module.selective_log_softmax()
            clock.time += 8.0  # the rest of an update
            clock.on_step_end(None, SimpleNamespace(global_step=step), None)
    expected = {"generate": 1.0, "score": 0.25, "evaluate": 0.25 + 2.0 + 0.5, "learn": 2.0 + 0.5 + 8.0}
    assert clock.updates == [expected, expected]
    assert vars(module) == untouched


def test_an_update_of_ours_ends_with_the_last_of_its_steps():
    clock = Clock("cpu", steps=2)
    progress = TimedProgress(clock)
    clock.on_train_begin(None, None, None)
    with progress.phase("generate", total=3) as advance:
        clock.time += 3.0
        advance(3)
    for step in (1, 2):
        clock.time += 1.0
        clock.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert clock.updates == [{"generate": 3.0, "score": 0.0, "evaluate": 0.0, "learn": 2.0}]


@pytest.mark.parametrize("probability", [0.02, 0.125])
def test_completions_of_geometric_length_end_with_their_probability_at_every_token(probability):
    run = dataclasses.replace(QUICK, vocab_size=300, hidden_size=64, layers=2)
    made = versus_trl.model(run)
    ids = torch.randint(3, 300, (8, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = made(ids).logits.softmax(-1)
        random_models.end_with_probability(made, probability)
        after = made(ids).logits.softmax(-1)
    eos = after[..., random_models.EOS_ID]
    assert before[..., random_models.EOS_ID].max() < 0.02
    assert eos.mean() == pytest.approx(probability, rel=0.03) and eos.std() < 0.1 * probability
    assert after[..., 3:].mean() == pytest.approx((1 - probability) / 299, rel=0.05), "the others stay alike"


@needs_trls_ppo
def test_both_run_with_geometric_lengths_and_processor_seconds(tmp_path, monkeypatch):
    seen = []

    def in_this_process(run, measure):
        seen.append((run.trainer, run.lengths, run.clock))
        if measure == "memory":
            return {"process": 2**30, "allocated": 0.0}
        return versus_trl.execute(run, measure)

    monkeypatch.setattr(versus_trl, "in_own_process", in_this_process)
    monkeypatch.setattr(versus_trl, "machine_rate", lambda device: 1e13)
    options = ["--settings", "c", "--lengths", "geometric", "--clock", "cpu", "--output", str(tmp_path)]
    assert versus_trl.main(["--quick", "--device", "cpu", *options]) == 0
    [path] = tmp_path.glob("*.json")
    [cell] = json.loads(path.read_text())["cells"]
    assert (cell["run"]["lengths"], cell["run"]["clock"]) == ("geometric", "cpu") and cell["speed"] > 0
    assert set(seen) == {("trl", "geometric", "cpu"), ("ours", "geometric", "cpu")}


@needs_trls_ppo
@pytest.mark.parametrize("setting", versus_trl.SETTINGS)
def test_both_run_in_every_setting_and_the_ratios_are_ours_over_trls(setting, tmp_path, monkeypatch, capsys):
    def in_this_process(run, measure):
        if measure == "memory":
            return {"process": {"trl": 4.0, "ours": 1.0}[run.trainer] * 2**30, "allocated": 0.0}
        return versus_trl.execute(run, measure)

    monkeypatch.setattr(versus_trl, "in_own_process", in_this_process)
    monkeypatch.setattr(versus_trl, "machine_rate", lambda device: 1e13)
    assert versus_trl.main(["--quick", "--settings", setting, "--output", str(tmp_path), "--device", "cpu"]) == 0
    [path] = tmp_path.glob("*.json")
    contents = json.loads(path.read_text())
    assert contents["device"]["type"] == "cpu" and contents["versions"]["trl"].startswith("1.12")
    [cell] = contents["cells"]
    assert cell["run"]["setting"] == setting and cell["memory"] == 0.25
    for trainer in ("trl", "ours"):
        seconds = cell[trainer]["seconds"]
        assert min(seconds.values()) > 0
        assert 0 < sum(cell[trainer]["floor"].values()) < sum(seconds.values())
        # One update of four completions was timed.
        assert cell[trainer]["samples_per_second"] == pytest.approx(4 / sum(seconds.values()))
    ratio = cell["ours"]["samples_per_second"] / cell["trl"]["samples_per_second"]
    assert cell["speed"] == pytest.approx(ratio) and cell["speed_by_round"][0] == pytest.approx(ratio)
    out = capsys.readouterr().out
    assert "at 10000 GFLOPS" in " ".join(out.split()) and str(path) in out
    assert f"({cell['speed']:.2f}x)" in out and "1.00 (0.25x)" in out


def test_memory_is_measured_in_a_process_of_its_own():
    if not sys.platform.startswith("linux"):
        pytest.skip("peaks on a CPU are read from /proc")
    if importlib.util.find_spec("trl.experimental.ppo") is None:
        pytest.skip("TRL's PPOTrainer was removed in 1.13: `make test-trl-1.12` has it")
    peaks = versus_trl.in_own_process(QUICK, "memory")
    assert 0 < peaks["allocated"] < peaks["process"]


def test_a_run_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(turns.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr="no memory"))
    with pytest.raises(RuntimeError, match="trainer='ours'.*failed:\nno memory"):
        versus_trl.in_own_process(QUICK, "time")


def test_without_trls_ppo_the_command_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert versus_trl.main(["--quick"]) == 2
    assert "make test-trl-1.12" in capsys.readouterr().err
