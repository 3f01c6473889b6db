# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Runs that must come out equal, and quantities that must be exact before the first update."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests import scripted
from tests.launching import run_whole
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext import micro_batches

LORA = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize(
    ("critic", "peft_config", "extra"),
    [
        ("head", None, {}),
        ("copy", None, {"temperature": 0.7}),
        ("head", LORA, {"kl_estimator": "exact"}),
        ("adapter", LORA, {"gradient_checkpointing": True}),
        ("copy", None, {"kl_estimator": "exact", "kl_coef": 1.0}),
    ],
)
def test_before_the_first_update_the_ratio_is_one_and_the_kl_zero(tmp_path, critic, peft_config, extra):
    made = scripted.trainer(tmp_path, scripted=False, critic=critic, peft_config=peft_config, **extra)
    made.train()
    first = scripted.logs(made)[0]
    assert (first["ratio/mean"], first["ratio/max"], first["approx_kl"], first["clip_fraction"]) == (1, 1, 0, 0)
    assert first["kl"] == 0
    # The identity holds at the start of every rollout, the KL only of the first.
    later = scripted.logs(made)[2]
    assert later["ratio/max"] == 1 and later["approx_kl"] == 0 and later["kl"] > 0
    assert scripted.logs(made)[1]["ratio/max"] != 1


@pytest.mark.parametrize(("batch", "parts"), [(8, 1), (4, 2), (2, 2)])
def test_the_ratio_is_one_where_micro_batches_are_cut_by_length(tmp_path, monkeypatch, batch, parts):
    """To the last bit: other samples beside it, or another width, would round a log-probability differently."""
    monkeypatch.setitem(micro_batches.PASS_COST, "cpu", 2)
    monkeypatch.setitem(micro_batches.GRADIENT_COST, "cpu", 0)
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 16 // batch, "total_episodes": 32}
    sizes |= {"eval_dataset": scripted.prompts(16), "per_device_eval_batch_size": 8, "num_mini_batches": parts}
    made = scripted.trainer(tmp_path, max_completion_length=24, **sizes)
    made.generation_engine = Lengths()
    made.train()
    for line in (scripted.logs(made)[0], scripted.logs(made)[2 * parts]):
        assert (line["ratio/mean"], line["ratio/max"], line["approx_kl"]) == (1, 1, 0)
        assert 0 < line["padding_fraction"] < 0.2
    assert scripted.logs(made)[-1]["ratio/max"] != 1
    evaluated = made.evaluate()
    assert (evaluated["eval_ratio/mean"], evaluated["eval_ratio/max"], evaluated["eval_approx_kl"]) == (1, 1, 0)
    monkeypatch.setitem(micro_batches.PASS_COST, "cpu", 10**6)  # never worth a further pass
    assert made.evaluate()["eval_padding_fraction"] > evaluated["eval_padding_fraction"]


class Lengths(scripted.ScriptedEngine):
    """Completions of 1 to 24 tokens."""

    def __call__(self, *args, **kwargs):
        out = super().__call__(*args, **kwargs)
        ids = [row * (4 if i % 3 == 0 else 1) for i, row in enumerate(out.ids)]
        return out._replace(ids=[row[:24] for row in ids])


@pytest.mark.parametrize("critic", ["head", "copy"])
def test_eight_micro_batches_of_one_equal_one_of_eight(tmp_path, critic):
    # SGD, because Adam divides by the size of a gradient and so blows rounding up where it is all there is.
    settings = {"critic": critic, "entropy_coef": 0.01, "optim": "sgd", "learning_rate": 0.1}
    settings |= {"kl_loss_coef": 0.1} if critic == "head" else {"kl_estimator": "exact", "kl_coef": 0.5}
    one = scripted.trainer(tmp_path / "a", per_device_train_batch_size=8, gradient_accumulation_steps=1, **settings)
    eight = scripted.trainer(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8, **settings)
    before = scripted.weights(one)
    one.train()
    eight.train()
    assert largest_difference(scripted.weights(one), scripted.weights(eight)) < 1e-5
    assert largest_difference(scripted.weights(one), before) > 1e-3
    for a, b in zip(scripted.logs(one), scripted.logs(eight), strict=True):
        for name in ("loss", "policy_loss", "value_loss", "entropy", "kl", "ratio/max", "grad_norm"):
            assert a[name] == pytest.approx(b[name], abs=1e-5, rel=1e-4), name


def test_padding_does_not_change_a_sample(tmp_path):
    """Neither the other samples of a batch nor the width they force on it."""
    made = scripted.trainer(tmp_path)
    rollout = made._collect(list(scripted.prompts(8)), made.progress, training=False).rollout
    together = made.collector.forward(made.model, rollout.select(torch.arange(8)))
    for row in range(8):
        alone = rollout.select(torch.tensor([row]))
        width = alone.completion_length
        out = made.collector.forward(made.model, alone)
        assert torch.allclose(out.logps[0], together.logps[row, :width], atol=1e-5)
        mask = alone.completion_mask[0]
        assert torch.allclose(out.values[0, :-1][mask], together.values[row, :width][mask], atol=1e-5)


def test_a_pad_token_that_is_eos_changes_nothing(tmp_path):
    separate, same = (
        scripted.trainer(tmp_path, processing_class=tiny_tokenizer(pad_is_eos=pad_is_eos))
        for pad_is_eos in (False, True)
    )
    assert separate.processing_class.pad_token_id != same.processing_class.pad_token_id
    separate.train()
    same.train()
    assert largest_difference(scripted.weights(separate), scripted.weights(same)) == 0


def test_every_trainable_parameter_moves_and_no_frozen_one(tmp_path):
    for critic, peft_config in (("head", None), ("copy", None), ("head", LORA), ("adapter", LORA)):
        made = scripted.trainer(tmp_path, critic=critic, peft_config=peft_config)
        before = scripted.weights(made)
        trainable = {name for name, p in made.model.named_parameters() if p.requires_grad}
        made.train()
        after = scripted.weights(made)
        still = {name for name in before if torch.equal(before[name], after[name])}
        assert still == set(before) - trainable, f"{critic}, {peft_config is not None}"


def test_an_evaluation_does_not_depend_on_the_size_of_its_batches(tmp_path):
    """With a function that has no reward for most samples, and for all of some batches."""

    def of_few(completions, prompts, **columns):
        return [float(i) if i in (0, 4, 5, 6) else None for i in (int(p.split()[-1]) for p in prompts)]

    found = []
    for size in (1, 4, 16):
        made = scripted.trainer(
            tmp_path,
            reward_funcs=[scripted.reward, of_few],
            eval_dataset=scripted.prompts(16),
            eval_reward_funcs=of_few,
            per_device_eval_batch_size=size,
        )
        found.append(
            {k: v for k, v in made.evaluate().items() if re.search("reward|kl|length|explained|terminated", k)}
        )
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-5)
    assert found[0]["eval_rewards/of_few/mean"] == pytest.approx(15 / 4)
    assert found[0]["eval_rewards/of_few/std"] == pytest.approx((77 / 4 - (15 / 4) ** 2) ** 0.5)


def test_a_rollout_that_a_function_has_no_reward_for_is_no_zero_in_its_mean(tmp_path):
    batches = iter([10.0, None, 10.0, None])

    def at_times(completions, **columns):
        value = next(batches)
        return [value for _ in completions]

    made = scripted.trainer(
        tmp_path, reward_funcs=[scripted.reward, at_times], total_episodes=32, num_ppo_epochs=1, logging_steps=2
    )
    made.train()
    assert [line["rewards/at_times/mean"] for line in scripted.logs(made)] == [10.0, 10.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_controller": "pid", "kl_target": 1.0, "kl_coef": 0.2},
        {"kl_controller": "adaptive", "kl_target": 1.0, "kl_coef": 0.2},
        {"reward_constraints": ["reward <= -1"]},
    ],
)
def test_what_controls_the_policy_waits_until_the_policy_learns(tmp_path, settings):
    warm_up = {"critic_warmup_rollouts": 4, "num_ppo_epochs": 1, "total_episodes": 48}
    made = scripted.trainer(tmp_path, **warm_up, **settings)
    made.train()
    name = "kl_coef" if "kl_coef" in settings else "constraints/reward/multiplier"
    values = [line[name] for line in scripted.logs(made)]
    assert len(set(values[:5])) == 1 and len(set(values)) > 1, values


def test_a_minibatch_without_a_reward_moves_nothing_and_the_run_that_has_no_other_stops(tmp_path, caplog):
    rollouts = iter([1.0, None, 1.0, *[None] * 9])

    def at_times(completions, **columns):
        value = next(rollouts)
        return [None if value is None else value * len(c) for c in completions]

    moved = []

    class Weights(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            now = torch.cat([p.detach().flatten() for p in made.model.parameters()])
            moved.append(float((now - self.before).abs().max()))
            self.before = now.clone()

    weights = Weights()
    made = scripted.trainer(
        tmp_path, reward_funcs=at_times, callbacks=[weights], total_episodes=96, num_ppo_epochs=1, weight_decay=0.1
    )
    weights.before = torch.cat([p.detach().flatten() for p in made.model.parameters()]).clone()
    with pytest.raises(RuntimeError, match="Every minibatch of the last 3 rollouts was skipped"):
        made.train()
    assert [m > 0 for m in moved] == [True, False, True, False, False, False]
    lines = scripted.logs(made)
    assert lines[1]["skipped_minibatches"] == 1 and "ratio/max" not in lines[1] and lines[0]["ratio/max"] == 1


@pytest.mark.parametrize("kl_estimator", ["k1", "exact"])
def test_two_processes_equal_one(kl_estimator, tmp_path):
    """gloo, real processes: global normalization, whitening, KL and metrics."""
    results = []
    for world in (1, 2):
        out = tmp_path / f"world{world}"
        run_whole(Path(__file__).with_name("two_processes.py"), out, kl_estimator, processes=world)
        results.append(load_file(out / "weights.safetensors"))
    assert largest_difference(*results) < 1e-5
    untrained = dict(tiny_causal_lm().named_parameters())
    name = "model.embed_tokens.weight"
    assert (results[0][f"policy.{name}"] - untrained[name]).abs().max() > 1e-3


def test_an_evaluation_of_two_processes_equals_that_of_one(tmp_path):
    """Five prompts in batches of four: accelerate fills the second batch of both processes with rows of the first."""
    one: dict[str, float] = {}
    two: dict[str, float] = {}
    for world, found in ((1, one), (2, two)):
        folder = tmp_path / f"world{world}"
        run_whole(Path(__file__).with_name("evaluated.py"), folder, processes=world)
        read = json.loads((folder / "metrics.json").read_text())
        found |= {k: v for k, v in read.items() if not re.search("time|per_second|padding", k)}
    assert one.keys() == two.keys()
    assert {name: (one[name], two[name]) for name in one if one[name] != pytest.approx(two[name], abs=1e-5)} == {}
    assert one["eval_prompts"] == 5 and one["eval_rewards/skipped_fraction"] == 0 and one["eval_longest/max"] == 6
