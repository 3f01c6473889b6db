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
from tests.killed_runs import PHASES
from tests.launching import python_path
from trl_ext import AdaptiveKL
from trl_ext.resuming import warn_of_changes


def killed_runs(folder: Path, kind: str, processes: int, kills: str) -> tuple[list[str], str]:
    """The lines of `killed_runs.py`, one for each kill, and everything that the runs said."""
    script = Path(__file__).with_name("killed_runs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    command = [sys.executable, script, folder, kind, str(processes), kills]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.split(".")[0] in PHASES]
    assert done.returncode == 0, f"{lines} {done.stderr[-3000:]}"
    return lines, done.stderr


# Steps come once after the optimizer's step and once after the checkpoint; a checkpoint of two processes has about 26
# points of "save". The same script takes any number of random points.
@pytest.mark.parametrize(
    ("kind", "processes", "kills"),
    [
        ("full", 1, "sample.2,score.1,learn.9,step.4,save.60,rotate.3"),
        ("lora", 1, "step.7,save.30"),
        ("lora", 2, "sample.3"),
        ("hacking", 1, "step.8,save.95"),
        ("full", 2, "score.2,save.60"),
        ("critic", 1, "sample.2,learn.9"),
        ("critic", 2, "step.9"),
        ("everything", 1, "sample.3,learn.9,save.60"),
        ("everything", 2, "step.9"),
        ("stream", 1, "learn.9"),
        ("ahead", 1, "sample.5,learn.9,save.60"),
        ("stream", 2, "step.9"),
    ],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, kind, processes, kills):
    lines, said = killed_runs(tmp_path, kind, processes, kills)
    assert len(lines) == kills.count(",") + 1 and all(line.endswith(": identical") for line in lines)
    if processes == 1 and "save" in kills:  # of two, which one comes to a point first is left to chance
        assert "was only half written (" in said and list(tmp_path.glob("killed-*/incomplete-checkpoint-*"))
    whole = json.loads((tmp_path / "whole" / "left_0.json").read_text())
    log = whole["log"]
    assert len(log) > 5 and any("eval_reward" in line for line in log) and any("kl_coef" in line for line in log)
    if kind == "hacking":
        (monitor,) = whole["monitors"]
        assert monitor["rollouts"] == 4 and monitor["drifts"] and monitor["golds"]
        assert any("ptx_loss" in line for line in log)
    if processes == 2 and kind == "full":
        other = json.loads((tmp_path / "whole" / "left_1.json").read_text())
        memories = [left["rewards"]["own_memory"] for left in (whole, other)]
        assert memories[0] != memories[1], "each process has a memory of its own"
        assert whole["kl"] == other["kl"] and whole["constraints"] == other["constraints"]
    if kind == "ahead":
        assert {line.get("engine/staleness") for line in log} >= {0.0, 4.0}
    if kind in ("everything", "ahead"):
        logged = {name for line in log for name in line}
        parts = {"eval_judge/short/mean", "eval_ema_reward", "explained_variance/held_out", "critic_grad_norm"}
        assert logged >= parts | {"constraints/own_memory/multiplier", "critic_pretraining/value_loss"}
        assert whole["kl"]["controller"] == "PIDKL" and whole["rewards"].keys() == {"normalized_by_token", "own_memory"}
    if kind in ("full", "everything"):
        assert whole["constraints"]["own_memory"]["multiplier"]["integral"] != 0


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
    with pytest.raises(ValueError, match=r"critic_learning_rate of its own \(then False, now True\)"):
        resume(interrupted, critic_learning_rate=1e-3)
    with pytest.raises(
        ValueError, match=r"top_k \(then 0, now 5\), .* \(then \{\}, now \{'min_length': 3\}\), data_seed"
    ):
        resume(interrupted, top_k=5, generation_kwargs={"min_length": 3}, data_seed=7)
    with pytest.raises(ValueError, match="KL controller"):
        resume(interrupted, kl_controller=AdaptiveKL(target=6.0))
    with pytest.raises(ValueError, match="reward functions"):
        resume(interrupted, reward_funcs=[scripted.reward, scripted.reward])
    assert resume(interrupted).state.global_step == 4


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_resumed_run_learns_at_its_own_rates(tmp_path, schedule, caplog):
    """The checkpoint's optimizer and schedule bring their rates along; the error messages advise to lower them."""
    settings = {"lr_scheduler_type": schedule, "logging_steps": 1, "critic_learning_rate": 4e-3}
    first = scripted.trainer(tmp_path, save_strategy="steps", save_steps=2, learning_rate=1e-3, **settings)
    first.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert resume(tmp_path, learning_rate=1e-3, **settings).state.global_step == 4
    assert "learning rate is" not in caplog.text
    shutil.rmtree(tmp_path / "checkpoint-4")
    lowered = resume(tmp_path, learning_rate=1e-4, **settings)
    rates = [
        [line["learning_rate"] for line in t.state.log_history if "learning_rate" in line] for t in (first, lowered)
    ]
    assert rates[1][:2] == rates[0][:2] and rates[1][2:] == pytest.approx([rate / 10 for rate in rates[0][2:]])
    assert "learning rate is 0.0001, 0.004, and was 0.001, 0.004" in caplog.text
    assert [group["initial_lr"] for group in lowered.optimizer.param_groups][-1] == 4e-3


def test_a_resumed_run_has_its_own_weight_decay_and_betas(interrupted):
    changed = resume(interrupted, weight_decay=0.5, adam_beta2=0.5, adam_epsilon=1e-3)
    assert {group["weight_decay"] for group in changed.optimizer.param_groups} == {0.0, 0.5}
    assert {group["betas"] for group in changed.optimizer.param_groups} == {(0.9, 0.5)}
    assert {group["eps"] for group in changed.optimizer.param_groups} == {1e-3}


def test_changed_settings_that_may_change_are_told(interrupted, caplog):
    """Those that teach the policy otherwise; not those of logs and checkpoints, nor how long the run is."""
    aside = {"logging_steps": 3, "save_total_limit": 1, "total_episodes": 24, "run_name": "again"}
    assert resume(interrupted, gamma=0.9, cliprange=0.1, weight_decay=0.5, **aside).state.global_step == 6
    said = "cliprange (then 0.2, now 0.1), gamma (then 1.0, now 0.9), weight_decay (then 0.0, now 0.5). The run goes on"
    assert f"checkpoint-2 was written with: {said}" in caplog.text


def test_settings_that_change_prompts_or_the_critics_own_steps_are_told(interrupted, caplog):
    folder = interrupted / "checkpoint-2"
    written = json.loads((folder / "ppo_config.json").read_text())
    changed = {"critic_learning_rate": 1e-5, "chat_template_kwargs": {"a": 1}, "prompt_column": "text"}
    warn_of_changes(folder, {}, {**written, **changed})
    assert all(f"{name} (then {written[name]}, now {changed[name]})" in caplog.text for name in changed)


def test_the_same_settings_are_no_matter_of_a_word(tmp_path, caplog):
    """In another form, as a file of the user's may give them."""
    kwargs = {"min_length": 1, "no_repeat_ngram_size": 4}
    ranges = {"mask_ratio_range": [0.5, 2.0], "reward_constraints": ["kl <= 1"], "generation_kwargs": kwargs}
    settings = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "linear"}
    scripted.trainer(tmp_path, max_steps=2, total_episodes=None, **ranges, **settings).train()
    caplog.clear()
    again = {**ranges, "generation_kwargs": str(dict(reversed(kwargs.items()))).replace("'", '"')}
    assert resume(tmp_path, **again, lr_scheduler_type="linear").state.global_step == 4
    assert "not those that" not in caplog.text


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
