# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Names of other trainers: the advice names what exists, and only what exists."""

import copy
import dataclasses
import inspect
import pickle
import re

import pytest
from trl import GRPOConfig, ModelConfig, RLOOConfig, TrlParser

from trl_ext import PPOConfig, PPOTrainer
from trl_ext.messages.advice import ADVICE, TRAINER_ARGUMENTS, advice

SETTINGS = {field.name for field in dataclasses.fields(PPOConfig)}
ARGUMENTS = set(inspect.signature(PPOTrainer).parameters)
# What the recipes offer besides, and other words in backticks that are no names.
ELSEWHERE = {field.name for field in dataclasses.fields(ModelConfig)} | {"prompt", "LoraConfig", "BitsAndBytesConfig"}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_names_only_what_exists(name: str) -> None:
    quoted = re.findall(r"`([^`]+)`", ADVICE[name])
    words = {re.split(r"[=(]", text)[0] for text in quoted}
    commands = {"accelerate launch", "torchrun", "trl_ext.rewards.RunningNormalization"}
    assert words <= SETTINGS | ARGUMENTS | ELSEWHERE | commands | {"optimizers"}
    assert ADVICE[name].endswith(".") and ADVICE[name][0].islower()


def test_advice_is_for_names_that_do_not_exist() -> None:
    assert not set(ADVICE) & (SETTINGS | ARGUMENTS)


@pytest.mark.parametrize("other", [GRPOConfig, RLOOConfig])
def test_every_setting_of_trl_that_is_not_ours_is_answered(other: type) -> None:
    foreign = {field.name for field in dataclasses.fields(other)} - SETTINGS
    unanswered = {name for name in foreign if name not in ADVICE}
    # Parts of GRPO's losses and logs that PPO has no counterpart of.
    assert {
        name for name in unanswered if not re.match("vespo|sapo|log_|off_policy|max_tool|cast_|use_bias", name)
    } == set()


# Settings of other trainers, and ours of the same meaning.
OTHERS = {
    "TRL's PPO": {
        "response_length": "max_completion_length",
        "mini_batch_size": "num_mini_batches",
        "num_total_batches": "total_episodes",
    },
    "TRL's first PPO": {
        "ppo_epochs": "num_ppo_epochs",
        "init_kl_coef": "kl_coef",
        "adap_kl_ctrl": "kl_controller",
        "target": "kl_target",
        "horizon": "kl_horizon",
        "kl_penalty": "kl_estimator",
        "target_kl": "target_approx_kl",
        "ratio_threshold": "max_ratio",
        "log_with": "report_to",
    },
    "TRL's others": {
        "beta": "kl_coef",
        "epsilon": "cliprange",
        "epsilon_high": "cliprange_high",
        "delta": "dual_clip",
        "max_new_tokens": "max_completion_length",
        "num_iterations": "num_ppo_epochs",
        "scale_rewards": "whiten_rewards",
    },
    "transformers": {
        "evaluation_strategy": "eval_strategy",
        "no_cuda": "use_cpu",
        "warmup_ratio": "warmup_steps",
        "tokenizer": "processing_class",
        "per_gpu_train_batch_size": "per_device_train_batch_size",
        "push_to_hub_token": "hub_token",
    },
    "OpenRLHF": {
        "actor_learning_rate": "learning_rate",
        "eps_clip": "cliprange",
        "value_clip": "cliprange_value",
        "lambd": "lam",
        "freezing_steps": "critic_warmup_rollouts",
        "rollout_batch_size": "per_device_train_batch_size",
    },
    "verl": {
        "lr": "learning_rate",
        "clip_ratio": "cliprange",
        "entropy_coeff": "entropy_coef",
        "max_response_length": "max_completion_length",
    },
    "Stable-Baselines3": {
        "n_epochs": "num_ppo_epochs",
        "clip_range": "cliprange",
        "clip_range_vf": "cliprange_value",
        "ent_coef": "entropy_coef",
        "gae_lambda": "lam",
    },
}


@pytest.mark.parametrize("trainer", OTHERS)
def test_settings_of_other_trainers_are_answered_with_ours(trainer: str) -> None:
    answers = {theirs: advice(theirs, SETTINGS) for theirs in OTHERS[trainer]}
    assert set(OTHERS[trainer].values()) <= SETTINGS | ARGUMENTS
    assert {theirs: text for theirs, text in answers.items() if f"`{OTHERS[trainer][theirs]}" not in text} == {}


def test_the_trainers_arguments_are_listed() -> None:
    assert set(TRAINER_ARGUMENTS) == ARGUMENTS - SETTINGS


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    assert advice("gama", SETTINGS) == "did you mean `gamma`?"
    assert advice("qqq", SETTINGS) == ""


def test_the_configuration_stays_an_ordinary_dataclass() -> None:
    made = PPOConfig("unused", use_cpu=True, report_to="none", gamma=0.5)
    assert made.output_dir == "unused" and "gamma" in inspect.signature(PPOConfig).parameters
    assert dataclasses.replace(made, gamma=0.25).gamma == 0.25
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again.to_dict() == made.to_dict()
    assert TrlParser((PPOConfig,)).parse_args_and_config(["--output_dir", "unused"])[0].gamma == 1.0
