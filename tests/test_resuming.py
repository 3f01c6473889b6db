# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint and the run that goes on from it must have in common."""

import json
import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests import scripted
from tests.tiny_models import tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext import checkpoint
from trl_ext.actor_critic import ActorCritic
from trl_ext.files import write_json
from trl_ext.identity import reward_settings, run_identity
from trl_ext.resuming import check_checkpoint, check_finite, read_state
from trl_ext.rewards import Ensemble, PreferenceReward, RewardRunner, RunningNormalization

CONFIGURATION = {"batch size": 8, "critic": "head", "adapters": False}


def saved(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("scheduler.pt", "rollout_0.safetensors", "rng_state.pth"):
        (folder / name).write_bytes(b"content")
    (folder / "trainer_state.json").write_text("{}")
    write_json(folder / checkpoint.STATE, {"configuration": CONFIGURATION, "kl_controller": {"coef": 0.5}})
    checkpoint.commit(folder)
    return folder


def test_the_state_of_an_earlier_version_is_read(tmp_path):
    old = {"configuration": {}, "metrics": {"a": 1}, "stopped": True, "micro-batch": 4}
    (tmp_path / "ppo_state.json").write_text(json.dumps(old))
    state = read_state(tmp_path, 0)
    assert state["run_log"]["metrics"] == {"a": 1} and state["micro_batches"] == {"size": 4}
    assert state["gate"] == {"taken": 1, "lost": 0, "stopped": True}


def test_the_state_of_the_same_configuration_is_read(tmp_path):
    folder = saved(tmp_path / "checkpoint-1")
    check_checkpoint(folder, dict(CONFIGURATION), 0)
    assert read_state(folder, 0)["kl_controller"] == {"coef": 0.5}


def test_each_process_has_its_own_state(tmp_path):
    folder = saved(tmp_path / "checkpoint-1")
    (folder / "ppo_state_1.json").write_text(json.dumps({"configuration": {}, "kl_controller": 1}))
    assert read_state(folder, 1)["kl_controller"] == 1
    assert read_state(folder, 2)["kl_controller"] == {"coef": 0.5}, "as earlier versions saved it"


def test_every_difference_is_named_with_both_values(tmp_path):
    folder = saved(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match="another configuration") as error:
        check_checkpoint(folder, {"batch size": 16, "critic": "head", "adapters": True, "new in this version": 3}, 0)
    message = str(error.value)
    assert "batch size (then 8, now 16), adapters (then False, now True);" in message
    assert "critic" not in message and str(folder) in message and "\n" not in message
    assert "new in this version" not in message, "what an earlier version did not write is not compared"


def identity(model=None, tokenizer=None, data=None, ptx=None, rewards=scripted.reward, weights=None, **kwargs):
    model = ActorCritic(model if model is not None else tiny_causal_lm(), **kwargs)
    runner = RewardRunner(rewards, weights=weights)
    data = data if data is not None else scripted.prompts(16)
    return run_identity(model, tokenizer or tiny_tokenizer(), data, ptx, runner)


def differences(first: dict, second: dict) -> list[str]:
    return [name for name in first if first[name] != second.get(name)]


def test_the_same_run_has_the_same_identity_wherever_its_files_are(tmp_path):
    model = tiny_causal_lm()
    for place in ("here", "there"):
        model.save_pretrained(tmp_path / place)
        scripted.prompts(16).save_to_disk(tmp_path / f"{place}-data")
    runs = [
        identity(str(tmp_path / place), data=Dataset.load_from_disk(str(tmp_path / f"{place}-data")))
        for place in ("here", "there")
    ]
    assert runs[0] == runs[1] == identity(model)
    shuffled = scripted.prompts(16).shuffle(seed=1)
    back = shuffled.select(sorted(range(16), key=lambda i: int(shuffled[i]["prompt"].split()[-1].lstrip("sat"))))
    assert identity(data=back) == identity(), "another way to the same rows"
    in_bf16 = tiny_causal_lm().to(torch.bfloat16)
    assert identity(in_bf16)["model"] == identity(tiny_causal_lm().to(torch.bfloat16).float())["model"]


def one_other_weight():
    model = tiny_causal_lm()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(1e-3)
    return model


def with_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}!"
    return tokenizer


def replaced(row: int, text: str) -> Dataset:
    rows = scripted.prompts(16)["prompt"]
    return Dataset.from_dict({"prompt": [text if i == row else prompt for i, prompt in enumerate(rows)]})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: {"model": one_other_weight()}, ["model"]),
        (lambda: {"data": replaced(7, "the dog")}, ["train_dataset"]),
        (lambda: {"data": scripted.prompts(17)}, ["train_dataset"]),
        (lambda: {"data": scripted.prompts(16).select(range(15, -1, -1))}, ["train_dataset"]),
        (lambda: {"data": scripted.prompts(16).add_column("answer", ["a"] * 16)}, ["train_dataset"]),
        (lambda: {"ptx": Dataset.from_dict({"text": ["a"]})}, ["ptx_dataset"]),
        (lambda: {"tokenizer": with_template()}, ["tokenizer"]),
        (lambda: {"weights": [2.0]}, ["reward_weights"]),
    ],
)
def test_another_content_is_another_identity(change, named):
    assert differences(identity(), identity(**change())) == named


def test_reward_models_are_told_apart_by_their_weights():
    def run(shift):
        model = tiny_classifier(["score"])
        model.get_input_embeddings().weight.data += shift
        reward = RunningNormalization(PreferenceReward(model, tokenizer=tiny_tokenizer()))
        return identity(rewards=[reward, scripted.reward])

    assert run(0.0) == run(0.0)
    assert [name.startswith("model of reward") for name in differences(run(0.0), run(0.1))] == [True]


class Judge:
    __name__ = "judge"

    def __init__(self, threshold: float, instruction: str):
        self.threshold, self.instruction, self._calls = threshold, instruction, 0

    def __call__(self, completions, **kwargs):
        return [self.threshold] * len(completions)


def test_settings_of_rewards_are_found_in_every_part_and_texts_are_not_written():
    def settings(*args):
        wrapped = RunningNormalization(Ensemble([Judge(*args), scripted.reward]), clip=5.0)
        return reward_settings(RewardRunner([wrapped]))

    found = settings(0.5, "secret")
    assert "secret" not in json.dumps(found) and settings(0.5, "secret") == found
    (threshold,) = [name for name in found if name.endswith(".threshold")]
    assert found[threshold] == 0.5 and any(name.endswith(".clip") and v == 5.0 for name, v in found.items())
    (changed,) = differences(found, settings(0.5, "another"))
    assert changed.endswith(".instruction")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_and_moments_must_be_finite(value):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    check_finite(model, optimizer, 3)
    optimizer.state[model.bias]["exp_avg_sq"][1] = value
    with pytest.raises(RuntimeError, match="the first is the optimizer's state of bias; no checkpoint is written"):
        check_finite(model, optimizer, 3)
    model.weight.data[0, 1] = value
    with pytest.raises(RuntimeError, match="Step 3: 2 of 8 trained tensors are NaN or infinite, the first is weight;"):
        check_finite(model, optimizer, 3)
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    frozen.weight.data[0, 1] = value
    check_finite(frozen, torch.optim.SGD(model.parameters()), 3)


def nan_after(step: int):
    from transformers import TrainerCallback

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == step:
                next(p for p in model.parameters() if p.requires_grad).data.view(-1)[0] = float("nan")

    return Poison()


def test_nan_weights_never_displace_a_good_checkpoint(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    made = scripted.trainer(tmp_path, callbacks=[nan_after(3)], **settings)
    with pytest.raises(RuntimeError, match="Step 3: .* NaN or infinite.*no checkpoint is written"):
        made.train()
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-2"]
    resumed = scripted.trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def test_a_full_disk_is_one_sentence_and_the_older_checkpoint_stays(tmp_path, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    made = scripted.trainer(tmp_path, **settings)
    save = made._save_optimizer_and_scheduler

    def full(folder):
        if made.state.global_step == 2:
            raise OSError(28, "No space left on device")
        save(folder)

    monkeypatch.setattr(made, "_save_optimizer_and_scheduler", full)
    with pytest.raises(RuntimeError) as raised:
        made.train()
    assert str(raised.value) == (
        f"{tmp_path / 'checkpoint-2'} could not be written (OSError: [Errno 28] No space left on device); make room or "
        "choose another `output_dir`; checkpoint-1 is whole."
    )
    assert [p.name for p in tmp_path.glob("*checkpoint*")] == ["checkpoint-1"]
    assert checkpoint.find_damage(tmp_path / "checkpoint-1") is None


def test_the_best_model_is_found_after_a_move(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    settings = {
        "eval_dataset": scripted.prompts(6),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_reward",
        "greater_is_better": True,
    }
    scripted.trainer(before, **settings, max_steps=2, total_episodes=None).train()
    before.rename(after)
    made = scripted.trainer(after, **settings)
    made.train(resume_from_checkpoint=True)
    # Scripted completions: the reward never changes, so the first step stays the best.
    assert made.state.best_global_step == 1 and made.state.global_step == 4
    assert made.state.best_model_checkpoint == str(after / "checkpoint-1")
    assert [p.name for p in checkpoint.checkpoints(after)] == ["checkpoint-1", "checkpoint-4"]
    made.state.best_model_checkpoint = str(before / "checkpoint-1")  # as a moved state says until the next checkpoint
    made._load_best_model()
    assert made.state.best_model_checkpoint == str(after / "checkpoint-1")


def test_a_new_run_among_the_checkpoints_of_an_earlier_one_is_told(tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 2}
    scripted.trainer(tmp_path, **settings).train()
    made = scripted.trainer(tmp_path)
    with caplog.at_level(logging.WARNING):
        made.train()
    assert "has checkpoints of an earlier run, up to checkpoint-4" in caplog.text


def test_changed_settings_of_a_reward_are_named(tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 1}
    scripted.trainer(
        tmp_path, reward_funcs=[Judge(0.5, "be kind")], max_steps=2, total_episodes=None, **settings
    ).train()
    made = scripted.trainer(tmp_path, reward_funcs=[Judge(0.7, "be kind")], **settings)
    with caplog.at_level(logging.WARNING):
        made.train(resume_from_checkpoint=True)
    assert "judge.threshold (then 0.5, now 0.7)" in caplog.text and "instruction" not in caplog.text
