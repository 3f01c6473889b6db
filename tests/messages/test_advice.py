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
    assert ADVICE[name].endswith(".") and ADVICE[name][0].islower() or ADVICE[name].startswith("vLLM")


def test_advice_is_for_names_that_do_not_exist() -> None:
    assert not set(ADVICE) & (SETTINGS | ARGUMENTS)


@pytest.mark.parametrize("other", [GRPOConfig, RLOOConfig])
def test_every_setting_of_trl_that_is_not_ours_is_answered(other: type) -> None:
    foreign = {field.name for field in dataclasses.fields(other)} - SETTINGS
    unanswered = {name for name in foreign if not (name in ADVICE or name.startswith("vllm_"))}
    # Parts of GRPO's losses and logs that PPO has no counterpart of.
    assert {
        name for name in unanswered if not re.match("vespo|sapo|log_|off_policy|max_tool|cast_|use_bias", name)
    } == set()


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
