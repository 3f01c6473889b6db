# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Rollouts beside evaluation, what is recorded of the arguments, and the speeds that are logged."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from tests import scripted
from trl_ext import PPOConfig


def slow_in(kind):
    """A reward function that takes a tenth of a second for rows of this kind."""

    def reward(completions, kind_of_row, **columns):
        if kind_of_row[0] == kind:
            time.sleep(0.1)
        return scripted.reward(completions)

    return reward


def rows(n, kind):
    return scripted.prompts(n).add_column("kind_of_row", [kind] * n)


def test_an_evaluation_between_two_passes_leaves_the_training_log_alone(tmp_path):
    """Every pass logs the rollout it learned from: its time, its speed, its rewards."""
    settings = {"train_dataset": rows(8, "train"), "eval_dataset": rows(4, "eval"), "total_episodes": 8}
    made = scripted.trainer(
        tmp_path,
        reward_funcs=slow_in("eval"),
        num_ppo_epochs=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=2,
        **settings,
    )
    made.train()
    lines = scripted.logs(made)
    evaluations = [line for line in made.state.log_history if "eval_reward" in line]
    assert len(lines) == len(evaluations) == 3
    assert all(line["eval_time/score"] >= 0.1 for line in evaluations)
    assert len({line["time/score"] for line in lines}) == 1
    for line in lines:
        seconds = sum(line[f"time/{phase}"] for phase in ("generate", "score", "evaluate")) + 3 * line["time/learn"]
        assert line["tokens_per_second"] == pytest.approx(8 * line["completions/mean_length"] / seconds)
    state = json.loads((tmp_path / "checkpoint-2" / "ppo_state.json").read_text())
    assert state["run_log"]["rollout_metrics"]["time/score"] == lines[0]["time/score"]


def test_no_attribute_of_the_trainer_changes_in_an_evaluation(tmp_path):
    class Watch(TrainerCallback):
        def __init__(self):
            self.before = self.after = None

        def seen(self):
            numbers = {k: v for k, v in vars(made).items() if isinstance(v, int | float | str | None)}
            return numbers | {"rollout": id(made._rollout), "run_log": made.run_log.state_dict()}

        def on_step_end(self, args, state, control, **kwargs):
            self.before = self.seen()

        def on_evaluate(self, args, state, control, **kwargs):
            self.after = self.seen()
            if state.global_step == state.max_steps:
                return  # this step is logged, and the log begins anew
            changed = {k for k in self.before if self.before[k] != self.after[k]}
            # The Trainer's own record of its log, and nothing of ours.
            assert not changed - {"_globalstep_last_logged", "_total_loss_scalar", "_memory_tracker"}, changed

    made = scripted.trainer(
        tmp_path, eval_dataset=scripted.prompts(4), eval_strategy="steps", eval_steps=1, logging_steps=100
    )
    watch = Watch()
    made.add_callback(watch)
    made.train()
    assert watch.after is not None


@pytest.mark.parametrize(
    "sizes",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_mini_batches": 2},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_mini_batches": 4},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_mini_batches": 2},
    ],
)
def test_what_the_user_wrote_is_recorded_and_makes_the_same_run_again(tmp_path, sizes):
    settings = {**sizes, "num_ppo_epochs": 2, "total_episodes": 16, "save_strategy": "steps", "save_steps": 4}
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(args.gradient_accumulation_steps)

    made = scripted.trainer(tmp_path / "a", callbacks=[Watch()], **settings)
    made.train()
    made.save_model()
    assert (
        set(seen) == {sizes["gradient_accumulation_steps"]} and made.state.global_step == 4 * sizes["num_mini_batches"]
    )
    checkpoints = sorted((tmp_path / "a").glob("checkpoint-*"))
    for folder in (tmp_path / "a", *checkpoints):
        recorded = json.loads((folder / "ppo_config.json").read_text())
        for name, value in {**sizes, "max_steps": -1, "total_episodes": 16}.items():
            assert recorded[name] == getattr(made.args, name) == value, name
    names = [f.name for f in PPOConfig.__dataclass_fields__.values() if f.init]
    again = {name: recorded[name] for name in names if name in recorded and name in settings}
    second = scripted.trainer(tmp_path / "b", **again)
    second.train()
    assert second.state.global_step == made.state.global_step
    for name, p in scripted.weights(made).items():
        assert p.equal(scripted.weights(second)[name]), name


def test_samples_per_second_count_completions_and_those_of_this_call(tmp_path):
    settings = {"num_ppo_epochs": 4, "total_episodes": 32, "save_strategy": "steps", "save_steps": 8}
    made = scripted.trainer(tmp_path, **settings)
    result = made.train()
    seconds = result.metrics["train_runtime"]
    assert result.metrics["train_samples_per_second"] == pytest.approx(32 / seconds, rel=0.02)
    resumed = scripted.trainer(tmp_path, **settings)
    result = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    seconds = result.metrics["train_runtime"]
    assert result.metrics["train_samples_per_second"] == pytest.approx(16 / seconds, rel=0.02)
    assert resumed.state.log_history[-1]["train_samples_per_second"] == result.metrics["train_samples_per_second"]


def test_an_evaluation_in_bf16_leaves_weights_and_buffers_as_they_were(tmp_path):
    made = scripted.trainer(tmp_path, eval_dataset=scripted.prompts(4), bf16_full_eval=True)
    tensors = [*made.model.parameters(), *made.model.buffers()]
    before = [tensor.clone() for tensor in tensors]
    assert math.isfinite(made.evaluate()["eval_loss"])
    for tensor, was in zip([*made.model.parameters(), *made.model.buffers()], before, strict=True):
        assert tensor.dtype == was.dtype and tensor.equal(was)


class CopyingEngine(scripted.ScriptedEngine):
    """An engine that holds a copy of the weights, and notes when it is told what."""

    def __init__(self):
        self.told = []

    def __call__(self, *args):
        self.told.append("sample")
        return super().__call__(*args)

    def weights_changed(self):
        self.told.append("weights changed")

    def close(self):
        self.told.append("close")


def test_an_engine_hears_of_new_weights_before_every_call_and_is_closed_after_training(tmp_path):
    made = scripted.trainer(
        tmp_path, total_episodes=16, eval_dataset=scripted.prompts(8), eval_strategy="steps", eval_steps=1
    )
    made.generation_engine = engine = CopyingEngine()
    made.train()
    calls = engine.told.count("sample")
    assert calls > 2, "rollouts and evaluations"
    assert engine.told == ["weights changed", "sample"] * calls + ["close"]


def test_an_engine_is_closed_after_a_failure(tmp_path):
    def broken(completions, **columns):
        raise KeyboardInterrupt

    made = scripted.trainer(tmp_path, reward_funcs=broken)
    made.generation_engine = engine = CopyingEngine()
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert engine.told == ["weights changed", "sample", "close"]


def test_a_function_is_an_engine(tmp_path):
    made = scripted.trainer(tmp_path, total_episodes=8)
    engine = scripted.ScriptedEngine()
    made.generation_engine = lambda *args: engine(*args)
    made.train()
    assert scripted.logs(made)


def test_what_a_rollout_earns_by_hand(tmp_path):
    """Every completion is scored, cut off or not, and valued again by itself, without padding."""

    def letters(completions, **columns):
        return [float(len(c)) for c in completions]

    made = scripted.trainer(
        tmp_path,
        reward_funcs=[scripted.reward, letters],
        reward_constraints=["letters <= 3"],
        missing_eos_penalty=0.5,
        bootstrap_truncated=True,
        lam=1.0,
        gamma=1.0,
        kl_coef=0.0,
    )
    torch.nn.init.normal_(made.model.value_head.weight)
    rows = [made.train_dataset[i] for i in range(8)]
    options = {"callbacks": [], "state": made.state, "training": True}
    rollout, batch, *_ = made.collector.collect(made.model, rows, made.progress, **options)
    assert 0 < rollout.terminated.sum() < 8 and rollout.valid.all()
    for i, ids in enumerate(batch.completion_ids):
        whole = rollout.input_ids[i][rollout.attention_mask[i].bool()].unsqueeze(0)
        with torch.no_grad():
            out = made.model(whole, torch.ones_like(whole), torch.ones(1, len(ids), dtype=torch.bool))
        *values, after_last = out.values[0].tolist()
        text = batch.completions[i]
        # The multiplier begins at the weight, 1: the mean of the reward and of what lies below the bound.
        score = (scripted.reward([text])[0] - (letters([text])[0] - 3)) / 2
        end = bool(rollout.terminated[i])
        assert float(rollout.scores[i]) == pytest.approx(score - 0.5 * (not end), abs=1e-4)
        earned = float(rollout.scores[i]) + (0.0 if end else after_last)
        assert rollout.returns[i, : len(ids)].tolist() == pytest.approx([earned] * len(ids), abs=1e-3)
        assert rollout.old_values[i, : len(ids)].tolist() == pytest.approx(values, abs=1e-4)
    outside = ~rollout.completion_mask
    for name in ("old_logps", "ref_logps", "kl", "old_values", "advantages", "returns", "token_scores"):
        assert not getattr(rollout, name)[outside].any(), name


def test_a_critic_that_has_learned_nothing_predicts_the_mean_at_once_and_bootstraps_with_it(tmp_path):
    made = scripted.trainer(tmp_path, scale_returns=True, bootstrap_truncated=True, lam=1.0, gamma=1.0, kl_coef=0.0)
    rows = [made.train_dataset[i] for i in range(8)]
    options = {"callbacks": [], "state": made.state, "training": True}
    rollout = made.collector.collect(made.model, rows, made.progress, **options).rollout
    mask = rollout.completion_mask
    # The first returns hold no value: a critic at zero has cut-off completions end with 0.
    scores = rollout.scores.unsqueeze(1).expand_as(mask)
    mean = scores[mask].mean()
    assert mean.abs() > 0.1 and not rollout.terminated.all()
    assert made.model.return_scale.mean.item() == pytest.approx(mean.item(), rel=1e-5)
    torch.testing.assert_close(rollout.old_values[mask], mean.expand(int(mask.sum())))
    earned = torch.where(rollout.terminated.unsqueeze(1), scores, scores + mean)
    torch.testing.assert_close(rollout.returns[mask], earned[mask])
    before = {name: t.clone() for name, t in made.model.return_scale.state_dict().items()}
    rows = [made.train_dataset[i] for i in range(8, 16)]
    made.collector.collect(made.model, rows, made.progress, **(options | {"training": False}))
    assert made.model.return_scale.state_dict() == before, "an evaluation moves no scale"


def test_what_the_critic_explains_of_held_out_prompts_by_hand(tmp_path):
    made = scripted.trainer(tmp_path, critic="copy", critic_epochs=1, critic_held_out=0.4, gamma=1.0, kl_coef=0.0)
    torch.nn.init.normal_(made.model.value_head.weight)
    rows = [made.train_dataset[i] for i in range(8)]
    options = {"callbacks": [], "state": made.state, "training": True}
    experience = made.collector.collect(made.model, rows, made.progress, **options)
    rollout = experience.rollout
    assert 2 <= rollout.held_out.sum() < 8
    mask = rollout.completion_mask & rollout.held_out.unsqueeze(1)
    returns, values = rollout.scores.unsqueeze(1).expand_as(mask)[mask], rollout.old_values[mask]
    explained = 1 - (returns - values).var(correction=0) / returns.var(correction=0)
    assert experience.metrics["explained_variance/held_out"] == pytest.approx(explained.item(), rel=1e-3)


@pytest.mark.filterwarnings("ignore:All reward functions returned None")
def test_the_kl_controller_is_told_the_completions_with_a_reward_on_all_processes(tmp_path):
    def some(completions, **columns):
        return [None if i < 2 else 1.0 + i for i in range(len(completions))]

    made, told = scripted.trainer(tmp_path, reward_funcs=some), []
    made.collector.kl_controller = SimpleNamespace(coef=0.1, update=lambda kl, episodes: told.append((kl, episodes)))
    # The other process has as many.
    made.collector.reduce = lambda tensor, operation="sum": tensor if operation == "max" else tensor * 2
    rows = [made.train_dataset[i] for i in range(8)]
    for training in (True, False):
        made.collector.collect(made.model, rows, made.progress, callbacks=[], state=made.state, training=training)
    assert told == [(0.0, 12)], "an evaluation tells it nothing"
