# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A run that is killed with SIGKILL and resumed ends bit for bit like one that was not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import scripted
from tests.killed_runs import KILLS
from trl_ext import AdaptiveKL

TIMING = ("time/", "tokens_per_second", "runtime", "samples_per_second", "steps_per_second", "train_loss")


def without_timing(log: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not any(part in k for part in TIMING)} for line in log]


@pytest.mark.parametrize("kind", ["full", "lora", "hacking"])
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, kind):
    script = Path(__file__).with_name("killed_runs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run([sys.executable, script, tmp_path, kind], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = json.loads((tmp_path / "whole" / "left.json").read_text())
    if kind == "hacking":
        (monitor,) = whole["monitors"]
        assert monitor["rollouts"] == 4 and monitor["drifts"] and monitor["golds"]
        assert any("ptx_loss" in line for line in whole["log"])
    weights = load_file(tmp_path / "whole" / "weights.safetensors")
    log = without_timing(whole["log"])
    assert len(log) > 5 and any("eval_reward" in line for line in log) and any("kl_coef" in line for line in log)
    for kill in KILLS:
        folder = tmp_path / kill.replace(" ", "-")
        left = json.loads((folder / "left.json").read_text())
        resumed = load_file(folder / "weights.safetensors")
        assert weights.keys() == resumed.keys()
        assert all(torch.equal(weights[name], resumed[name]) for name in weights), kill
        assert left["kl"] == whole["kl"], kill
        assert left["rewards"] == whole["rewards"], kill
        assert left["monitors"] == whole["monitors"], kill
        assert without_timing(left["log"]) == log, kill
    assert "checkpoint-6 was only half written" in done.stderr + done.stdout
    assert (tmp_path / "in-6" / "incomplete-checkpoint-6").is_dir()


@pytest.fixture
def interrupted(tmp_path):
    """A run with a checkpoint after each of its first two steps."""
    made = scripted.trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=2, total_episodes=None)
    made.train()
    return tmp_path


def resume(folder, **settings):
    made = scripted.trainer(folder, save_strategy="steps", save_steps=1, **settings)
    made.train(resume_from_checkpoint=True)
    return made


def test_a_checkpoint_of_another_configuration_is_refused(interrupted):
    with pytest.raises(ValueError, match=r"another configuration.*num_ppo_epochs \(then 2, now 3\)"):
        resume(interrupted, num_ppo_epochs=3)
    with pytest.raises(ValueError, match=r"critic \(then head, now model\)"):
        resume(interrupted, critic="copy")
    with pytest.raises(ValueError, match="KL controller"):
        resume(interrupted, kl_controller=AdaptiveKL(target=6.0))
    with pytest.raises(ValueError, match="reward functions"):
        resume(interrupted, reward_funcs=[scripted.reward, scripted.reward])
    assert resume(interrupted).state.global_step == 4


def test_a_truncated_checkpoint_is_skipped(interrupted):
    newest = interrupted / "checkpoint-2"
    with open(newest / "optimizer.pt", "r+b") as file:
        file.truncate(100)
    made = scripted.trainer(interrupted, save_strategy="steps", save_steps=1)
    assert not newest.exists()
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 4
    shutil.rmtree(interrupted / "incomplete-checkpoint-2")


def test_a_checkpoint_of_a_plain_trainer_is_refused(interrupted):
    newest = interrupted / "checkpoint-2"
    for name in ("ppo_state.json", "manifest.json"):
        (newest / name).unlink()
    shutil.rmtree(newest / "critic")
    made = scripted.trainer(interrupted)
    with pytest.raises(ValueError, match="not a checkpoint that PPOTrainer can resume from"):
        made.train(resume_from_checkpoint=newest)
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 4 and newest.is_dir()


def test_save_total_limit_keeps_the_newest(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    scripted.trainer(tmp_path, **settings).train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_the_best_model_comes_back(tmp_path):
    """By `eval_reward`, which is logged at every evaluation; training is made to get worse after the first steps."""
    made = scripted.trainer(
        tmp_path,
        scripted=False,
        eval_dataset=scripted.prompts(6),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        greater_is_better=False,
        learning_rate=1e-2,
    )
    made.train()
    rewards = {line["step"]: line["eval_reward"] for line in made.state.log_history if "eval_reward" in line}
    best = min(rewards, key=lambda step: (rewards[step], step))
    assert made.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    saved = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert torch.equal(saved["model.norm.weight"], made.model.causal_lm.model.norm.weight)
    assert made.evaluate()["eval_reward"] == rewards[best]
