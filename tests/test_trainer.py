# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a person asks of the trainer: options that do something, logs that are there, errors that help."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
)

from tests import scripted
from tests.tiny_models import prompt_dataset, save_tiny, tiny_causal_lm, tiny_tokenizer
from trl_ext import FixedKL, PPOConfig, PPOTrainer
from trl_ext.experience.engines import ContinuousBatchingEngine
from trl_ext.experience.rollout import Rollout
from trl_ext.rewards import RunningNormalization

LOGGED = [
    "reward",
    "reward_std",
    "rewards/reward/mean",
    "rewards/reward/std",
    "kl",
    "kl_coef",
    "entropy",
    "policy_loss",
    "value_loss",
    "approx_kl",
    "clip_fraction",
    "value_clip_fraction",
    "ratio/max",
    "explained_variance",
    "advantages/mean",
    "advantages/std",
    "completions/mean_length",
    "completions/terminated_fraction",
    "time/generate",
    "time/score",
    "time/evaluate",
    "time/learn",
    "tokens_per_second",
    "padding_fraction",
]


def run(folder, **settings):
    made = scripted.trainer(folder, **settings)
    made.train()
    return made


def moved(made, names=""):
    """Largest change of a parameter whose name starts with one of `names`, since the model was built."""
    fresh = dict(tiny_causal_lm().named_parameters())
    return max(
        (p - fresh[name.removeprefix("policy.")]).abs().max().item()
        for name, p in made.model.named_parameters()
        if name.startswith("policy.") and name.startswith(names)
    )


# ---- logs and evaluation ----


def test_every_step_logs_everything_and_evaluation_too(tmp_path):
    made = run(tmp_path, scripted=False, eval_dataset=scripted.prompts(5), eval_strategy="steps", eval_steps=2)
    lines = scripted.logs(made)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert not set(LOGGED) - set(line)
    evaluations = [line for line in made.state.log_history if "eval_reward" in line]
    assert len(evaluations) == 2
    for line in evaluations:
        assert not {f"eval_{name}" for name in LOGGED} - set(line)


def test_logged_rewards_are_those_of_the_function(tmp_path):
    made = run(
        tmp_path, num_ppo_epochs=1, reward_funcs=[scripted.reward, lambda completions, **kw: [2.0] * len(completions)]
    )
    engine = scripted.ScriptedEngine()
    first = scripted.logs(made)[0]
    ids = made.processing_class(text=list(made.train_dataset["prompt"]))["input_ids"]
    everything = scripted.reward(made.processing_class.batch_decode(engine(None, ids).ids, skip_special_tokens=True))
    both = [line["rewards/reward/mean"] for line in scripted.logs(made)]
    assert sum(both) / 2 == pytest.approx(sum(everything) / 16)
    assert first["reward"] == pytest.approx(first["rewards/reward/mean"] + 2.0)


def test_evaluation_leaves_training_alone_and_repeats_itself(tmp_path):
    plain = run(tmp_path / "a", scripted=False)
    watched = run(tmp_path / "b", scripted=False, eval_dataset=scripted.prompts(5), eval_strategy="steps", eval_steps=1)
    for name, p in scripted.weights(plain).items():
        assert torch.equal(p, scripted.weights(watched)[name]), name
    assert watched.evaluate()["eval_reward"] == watched.evaluate()["eval_reward"]


def test_evaluation_takes_no_random_number_from_reward_functions(tmp_path):
    def reward(completions, **columns):
        return [random.random() + np.random.rand() for _ in completions]

    made = run(tmp_path, reward_funcs=reward, eval_dataset=scripted.prompts(5))
    states = random.getstate(), np.random.get_state()
    first = made.evaluate()["eval_reward"]
    assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1][1]).all()
    random.random()
    assert made.evaluate()["eval_reward"] == first


def test_an_evaluation_counts_nothing_into_the_state_of_rewards(tmp_path):
    made = scripted.trainer(
        tmp_path, reward_funcs=RunningNormalization(scripted.reward), eval_dataset=scripted.prompts(6)
    )
    made.evaluate()
    state = made.rewards.state_dict()
    assert state == scripted.trainer(tmp_path, reward_funcs=RunningNormalization(scripted.reward)).rewards.state_dict()
    made.train()
    trained = made.rewards.state_dict()
    made.evaluate()
    assert made.rewards.state_dict() == trained != state


def test_a_best_model_by_rewards_whose_unit_moves_is_warned_of(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 5, "eval_dataset": scripted.prompts(2)}
    with pytest.warns(UserWarning, match="compares rewards of RunningNormalization, whose unit moves"):
        scripted.trainer(
            tmp_path,
            reward_funcs=RunningNormalization(scripted.reward),
            metric_for_best_model="eval_reward",
            **settings,
        )


def test_the_last_step_is_logged(tmp_path):
    lines = scripted.logs(run(tmp_path, logging_steps=3))
    assert [line["step"] for line in lines] == [3, 4] and "reward" in lines[-1]
    assert not scripted.logs(run(tmp_path / "none", logging_strategy="no"))


@pytest.mark.parametrize("event", ["on_step_end", "on_evaluate"])
def test_the_last_step_of_a_training_that_ends_early_is_logged(event, tmp_path):
    def stop(args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 2

    early = TrainerCallback()
    setattr(early, event, stop)
    made = scripted.trainer(
        tmp_path, logging_steps=3, eval_strategy="steps", eval_steps=1, eval_dataset=scripted.prompts(2)
    )
    made.add_callback(early)
    made.train()
    (line,) = scripted.logs(made)
    assert line["step"] == made.state.global_step == 2 and "reward" in line


def test_samples_are_printed(tmp_path, capsys):
    run(tmp_path, log_completions=True, num_completions_to_print=2)
    printed = capsys.readouterr().out
    assert "Completion" in printed and "Advantage" in printed and "the cat" in printed


def test_what_a_reward_function_logs_beside_its_rewards_is_shown(tmp_path, capsys):
    def reward(completions, log_extra, **columns):
        log_extra("verdict", ["perfectly fine"] * len(completions))
        return scripted.reward(completions)

    run(tmp_path, reward_funcs=reward, log_completions=True, total_episodes=8)
    assert "perfectly" in capsys.readouterr().out


# ---- the loop ----


@pytest.mark.parametrize(("epochs", "parts", "steps"), [(1, 1, 2), (2, 1, 4), (1, 4, 8), (3, 2, 12)])
def test_minibatches_and_passes_are_optimizer_steps(tmp_path, epochs, parts, steps):
    made = run(tmp_path, num_ppo_epochs=epochs, num_mini_batches=parts)
    assert made.state.global_step == steps
    taken = next(iter(made.optimizer.state.values()))["step"]
    assert int(taken) == steps


def test_the_minibatches_of_every_rollout_are_drawn_anew(tmp_path, monkeypatch):
    drawn, choose = [], Rollout.minibatch

    def recorded(self, *given):
        drawn.append(frozenset(choose(self, *given).tolist()))
        return choose(self, *given)

    monkeypatch.setattr(Rollout, "minibatch", recorded)
    run(tmp_path, num_ppo_epochs=2, num_mini_batches=2, total_episodes=32)
    rollouts = [drawn[i : i + 4] for i in range(0, 16, 4)]
    assert len(drawn) == 16 and all(a | b == c | d == set(range(8)) for a, b, c, d in rollouts)
    assert {a for a, *_ in rollouts} == {frozenset(range(4))}, "the first pass has the order of sampling"
    assert len({c for *_, c, _ in rollouts}) > 1


def test_a_dataset_smaller_than_a_rollout_is_drawn_from_several_times(tmp_path):
    made = run(tmp_path, train_dataset=scripted.prompts(3), total_episodes=None, num_train_epochs=2)
    assert made.state.global_step == 4


def test_gradient_clipping_is_on(tmp_path):
    settings = {"optim": "sgd", "learning_rate": 1.0, "total_episodes": 8, "num_ppo_epochs": 1}
    assert moved(run(tmp_path, max_grad_norm=1e-4, **settings)) < 1e-4 * 1.01
    assert moved(run(tmp_path, max_grad_norm=10.0, **settings)) > 1e-3


def test_the_critic_has_its_own_learning_rate(tmp_path):
    made = run(tmp_path, critic="copy", learning_rate=1e-12, critic_learning_rate=1e-2, num_ppo_epochs=1)
    assert moved(made) < 1e-9
    assert (made.model.value_head.weight.abs().max()) > 1e-3
    rates = {group["initial_lr"] for group in made.optimizer.param_groups}
    assert rates == {1e-12, 1e-2}
    grouped = [id(p) for group in made.optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == sum(p.requires_grad for p in made.model.parameters())


def test_in_warm_up_only_the_critic_learns(tmp_path):
    for critic in ("head", "copy"):
        settings = {"critic": critic, "critic_warmup_rollouts": 1, "weight_decay": 0.1}
        first = run(tmp_path, total_episodes=8, **settings)
        assert moved(first) == 0 and first.model.value_head.weight.abs().max() > 0
        assert moved(run(tmp_path, total_episodes=16, **settings)) > 0


def test_passes_stop_at_the_approximate_kl(tmp_path):
    settings = {"num_ppo_epochs": 6, "total_episodes": 8, "lr_scheduler_type": "constant"}
    free, bound = run(tmp_path, **settings), run(tmp_path, target_approx_kl=1e-4, **settings)
    skipped = [line["skipped_minibatches"] for line in scripted.logs(bound)]
    assert skipped == [0, 0, 1, 1, 1, 1]  # the second pass is the first to see an update
    assert [line["skipped_minibatches"] for line in scripted.logs(free)] == [0] * 6
    assert int(next(iter(bound.optimizer.state.values()))["step"]) == 2


def test_a_minibatch_that_went_too_far_is_skipped(tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    made = run(tmp_path, learning_rate=0.5, max_ratio=1.5, num_ppo_epochs=3, total_episodes=8)
    lines = scripted.logs(made)
    assert lines[0]["skipped_minibatches"] == 0 and any(line["skipped_minibatches"] for line in lines[1:])
    assert "minibatch skipped" in caplog.text
    still = scripted.trainer(tmp_path, max_loss=1e-9, total_episodes=8, weight_decay=0.1)
    still.train()
    assert moved(still) == 0


def test_a_loss_that_is_not_finite_does_no_harm(tmp_path, monkeypatch):
    made = scripted.trainer(tmp_path, total_episodes=8, num_ppo_epochs=2)
    compute_loss = PPOTrainer.compute_loss

    def broken(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 0:
            inputs.advantages = inputs.advantages * float("nan")
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(PPOTrainer, "compute_loss", broken)
    made.train()
    assert [line["skipped_minibatches"] for line in scripted.logs(made)] == [1, 0]
    assert all(torch.isfinite(p).all() for p in made.model.parameters())
    assert ["loss" in line for line in scripted.logs(made)] == [False, True]


def test_samples_without_a_score_teach_nothing(tmp_path):
    """Skipped samples count neither in the loss nor in its normalization, and a whole batch of them is survived."""

    def half(completions, **kwargs):
        return [None if i % 2 else value for i, value in enumerate(scripted.reward(completions))]

    made = scripted.trainer(tmp_path, reward_funcs=half)
    experience = made._collect(list(scripted.prompts(8)), made.progress, training=False)
    rollout, metrics = experience.rollout, experience.metrics
    assert rollout.valid.tolist() == [True, False] * 4
    assert not rollout.completion_mask[1::2].any() and rollout.advantages[1::2].abs().max() == 0
    assert metrics["reward"] == pytest.approx(rollout.scores[::2].mean().item())
    nothing = run(tmp_path, reward_funcs=lambda completions, **kw: [None] * len(completions), weight_decay=0.0)
    assert moved(nothing) == 0


# ---- options of the objective ----


@pytest.mark.parametrize(
    "option",
    [
        {"entropy_coef": 0.5},
        {"kl_loss_coef": 0.5},
        {"kl_loss_coef": 0.5, "kl_loss_estimator": "k3"},
        {"cliprange": 0.01},
        {"cliprange": 0.01, "cliprange_high": 0.5},
        {"dual_clip": 1.01},
        {"mask_ratio_range": [0.999, 1.001]},
        {"cliprange_value": 1e-4},
        {"vf_coef": 3.0},
        {"gamma": 0.5},
        {"lam": 0.1},
        {"lam_critic": 0.1},
        {"lam_adaptive_alpha": 0.3},
        {"whiten_advantages": False},
        {"whiten_rewards": True},
        {"missing_eos_penalty": 3.0},
        {"bootstrap_truncated": True},
        {"kl_coef": 5.0},
        {"kl_estimator": "k2", "kl_coef": 5.0},
        {"kl_estimator": "exact", "kl_coef": 5.0},
        {"reward_clip_range": [0.0, 0.1]},
        {"reward_weights": [3.0]},
        {"temperature": 2.0},
        {"shuffle_dataset": False},
        {"critic": "copy"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:`kl_estimator")
def test_every_option_changes_the_update(tmp_path, option):
    """Three large steps on each of two rollouts, so that every clip and every later value has come into play."""
    settings = {
        "num_ppo_epochs": 3,
        "learning_rate": 2e-2,
        "vf_coef": 0.5,
        "max_ratio": None,
        "lr_scheduler_type": "constant",
    }
    plain, changed = run(tmp_path, **settings), run(tmp_path, **{**settings, **option})
    assert any(
        not torch.equal(p, scripted.weights(changed).get(name, p)) for name, p in scripted.weights(plain).items()
    )


def test_missing_eos_costs_the_penalty(tmp_path):
    without, with_penalty = (
        made._collect(list(scripted.prompts(8)), made.progress, training=False).rollout
        for made in (scripted.trainer(tmp_path, missing_eos_penalty=p) for p in (None, 3.0))
    )
    expected = without.scores - 3.0 * (~without.terminated).float()
    assert torch.equal(with_penalty.scores, expected) and 0 < without.terminated.sum() < 8


def test_importance_sampling_corrects_for_the_engine(tmp_path):
    settings = {"importance_sampling_correction": True, "scripted": False, "learning_rate": 1e-12}
    exact = scripted.logs(run(tmp_path, **settings))[0]["importance_weight"]
    assert exact == pytest.approx(1.0, abs=1e-4)
    filtered = scripted.logs(run(tmp_path, top_k=5, importance_sampling_cap=0.9, **settings))[0]["importance_weight"]
    assert 0 < filtered < 0.9


def test_continuous_batching_trains(tmp_path):
    made = run(
        tmp_path,
        scripted=False,
        total_episodes=8,
        use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"max_memory_percent": 0.02, "max_batch_tokens": 256},
        importance_sampling_correction=True,
    )
    assert isinstance(made.generation_engine, ContinuousBatchingEngine) and moved(made) > 0
    assert scripted.logs(made)[0]["importance_weight"] == pytest.approx(1.0, abs=1e-3)


def test_the_controller_moves_the_coefficient(tmp_path):
    class Recorder(FixedKL):
        seen: list = []

        def update(self, kl, episodes):
            self.seen.append((kl, episodes))
            self.coef *= 2

    made = run(tmp_path, kl_controller=Recorder(0.1), num_ppo_epochs=1)
    lines = scripted.logs(made)
    assert [line["kl_coef"] for line in lines] == [0.1, 0.2]
    assert Recorder.seen == [(line["kl"], 8) for line in lines]


@pytest.mark.parametrize(
    ("settings", "coefs"),
    [
        ({"kl_controller": "adaptive", "kl_target": 1.0, "kl_coef": 0.2}, lambda a, b: b < a),
        ({"kl_controller": "pid", "kl_target": 1.0, "kl_coef": 0.2}, lambda a, b: b < a),
        ({"kl_controller": "scheduled", "kl_coef": 0.2, "kl_coef_end": 0.4}, lambda a, b: b == pytest.approx(0.3)),
        (
            {"kl_controller": "scheduled", "kl_coef": 0.2, "kl_coef_end": 0.05, "kl_schedule": "exponential"},
            lambda a, b: b == pytest.approx(0.1),
        ),
        ({"kl_controller": "fixed", "kl_coef": 0.2}, lambda a, b: a == b),
    ],
)
def test_controllers_by_name(tmp_path, settings, coefs):
    lines = scripted.logs(run(tmp_path, num_ppo_epochs=1, **settings))
    assert lines[0]["kl_coef"] == pytest.approx(0.2) and coefs(*(line["kl_coef"] for line in lines))


# ---- prompts, models, saving ----


def test_conversations_are_rendered_and_rewarded_as_messages(tmp_path):
    seen = {}

    def watch(prompts, completions, completion_ids, **columns):
        seen.update(prompts=prompts, completions=completions, columns=columns)
        return [1.0] * len(prompts)

    dataset = prompt_dataset(8, conversational=True).add_column("answer", list(range(8)))
    run(tmp_path, train_dataset=dataset, reward_funcs=watch, total_episodes=8, scripted=False)
    assert seen["prompts"][0][-1]["role"] == "user"
    assert seen["completions"][0][0]["role"] == "assistant"
    assert sorted(seen["columns"]["answer"]) == list(range(8)) and "trainer_state" in seen["columns"]


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, target_modules="all-linear")])
def test_what_is_saved_loads_with_transformers(tmp_path, peft_config):
    name = save_tiny(tmp_path / "base", tiny_causal_lm(), tiny_tokenizer())
    made = run(tmp_path / "out", model=name, peft_config=peft_config, processing_class=None)
    made.save_model()
    auto = AutoPeftModelForCausalLM if peft_config else AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(3, 20).unsqueeze(0)
    made.model.eval()
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, made.model.causal_lm(ids).logits, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<eos>"
    files = [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_the_model_card_names_the_method(tmp_path):
    made = run(tmp_path)
    made.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "PPO" in card and "trl_ext" in card and "1909.08593" in card


def test_arguments_are_optional(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_causal_lm()
    model.config.max_position_embeddings = 512  # room for the default `max_completion_length`
    name = save_tiny(tmp_path / "some-model", model, tiny_tokenizer())
    made = PPOTrainer(name, scripted.reward, train_dataset=scripted.prompts(2))
    assert made.args.output_dir == "some-model-PPO" and made.processing_class.eos_token == "<eos>"


# ---- bad input ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_dataset": Dataset.from_dict({"prompt": []})}, "is empty"),
        ({"train_dataset": Dataset.from_dict({"text": ["a"]})}, "no column 'prompt' .it has text"),
        ({"train_dataset": Dataset.from_dict({"prompt": ["a", " "]})}, "row 1: the prompt is empty"),
        ({"train_dataset": Dataset.from_dict({"prompt": ["a " * 300]})}, "row 0: the prompt has .* tokens, more than"),
        ({"train_dataset": None}, "`train_dataset` is missing"),
        ({"max_completion_length": 10**6}, "leaves no room"),
        ({"num_mini_batches": 3}, "`num_mini_batches` 3 does not divide"),
        ({"kl_coef": -0.1}, "`kl_coef` must be 0 or more, got -0.1"),
        ({"kl_target": -1.0}, "`kl_target` must be above 0"),
        ({"reward_weights": [1.0, 2.0]}, "`reward_weights` has 2 values for 1 reward functions"),
        ({"critic": "adapter"}, "needs `peft_config`"),
        (
            {
                "train_dataset": prompt_dataset(2, conversational=True),
                "processing_class": tiny_tokenizer(chat_template=False),
            },
            "no chat template",
        ),
        ({"model": BertForSequenceClassification(BertConfig(num_hidden_layers=1))}, "not a causal language model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        scripted.trainer(tmp_path, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([1.0], ValueError, r"1 .*8"),
        (["good"] * 8, TypeError, "good"),
        ([float("nan")] * 8, ValueError, "nan"),
    ],
)
def test_a_reward_of_the_wrong_kind_is_refused(tmp_path, returned, error, message):
    made = scripted.trainer(tmp_path, reward_funcs=lambda completions, **kw: returned)
    with pytest.raises(error, match=message):
        made.train()


def test_an_output_directory_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        scripted.trainer("/proc/nowhere")


def test_a_failing_reward_does_not_cost_the_run(tmp_path):
    calls = {"n": 0}

    def sometimes(completions, **kwargs):
        calls["n"] += 1
        if calls["n"] == 1:
            raise ConnectionError("try again")
        return scripted.reward(completions)

    assert run(tmp_path, reward_funcs=sometimes).state.global_step == 4
    with pytest.raises(RuntimeError, match="'broken' failed on at least 1 of 8 samples"):

        def broken(completions, **kwargs):
            raise ConnectionError("gone")

        run(tmp_path, reward_funcs=broken, reward_retries=0)


def test_configuration_is_saved_as_json(tmp_path):
    made = run(tmp_path)
    made.save_model()
    assert json.loads((tmp_path / "ppo_config.json").read_text())["num_ppo_epochs"] == 2
    assert isinstance(made.args, PPOConfig)
