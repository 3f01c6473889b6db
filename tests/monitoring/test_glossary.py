# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Every metric that a run logs has an entry, every entry is logged, and the table needs no torch."""

import re
import subprocess
import sys
from typing import Any

import pytest
from peft import LoraConfig

from tests import scripted
from tests.experience import copying_engine
from trl_ext.config import PPOConfig
from trl_ext.monitoring.glossary import GLOSSARY, find, label_of
from trl_ext.monitoring.reward_hacking import RewardHackingMonitor
from trl_ext.rewards import Ensemble, LengthDebiased


def gold(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def with_tasks(n):
    return scripted.prompts(n).add_column("task", ["copy", "sort"] * (n // 2))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names that a run with everything on logs."""
    made = copying_engine.trainer(
        tmp_path_factory.mktemp("run"),
        total_episodes=16,
        reward_funcs=[
            scripted.reward,
            Ensemble([scripted.reward, gold], name="ensemble"),
            LengthDebiased(scripted.reward, min_samples=8),
        ],
        reward_constraints=["ensemble >= 1"],
        mask_ratio_range=[0.5, 2.0],
        ptx_coef=0.1,
        critic="adapter",
        num_critics=2,
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
        critic_epochs=1,
        critic_held_out=0.5,
        critic_pretraining_episodes=8,
        ptx_dataset=scripted.prompts(4).rename_column("prompt", "text"),
        eval_strategy="steps",
        eval_steps=2,
        train_dataset=with_tasks(16),
        eval_dataset={"short": with_tasks(4), "long_ones": with_tasks(4)},
        callbacks=[RewardHackingMonitor(gold, max_kl=100.0, category="task")],
        eval_reward_funcs=[gold],
    )
    evaluated = made.evaluate()
    made.train()
    return {name for line in [evaluated, *made.state.log_history] for name in line}


def test_every_metric_that_is_logged_has_an_entry(logged: set[str]):
    assert {name for name in logged if find(name) is None} == set()


def test_every_entry_is_logged(logged: set[str]):
    found = {metric.name for name in logged if (metric := find(name)) is not None}
    assert {metric.name for metric in GLOSSARY} - found == set()


def test_every_setting_that_the_table_names_exists():
    of_other_parts = ["train", "ptx_dataset", "max_kl", "stop_on_alarm", "mean_minus_std", "eval_reward_funcs"]
    names = [*PPOConfig.__dataclass_fields__, *of_other_parts]
    for metric in GLOSSARY:
        for quoted in re.findall(r"`([a-z]\w+)(?:=\w+)?`", " ".join(metric[4:])):
            assert quoted in names or find(quoted) is not None, (metric.name, quoted)


def test_the_sentences_are_sentences():
    for metric in GLOSSARY:
        assert all(metric) and all(text.endswith(".") for text in metric[4:]), metric.name
        assert ("*" in metric.label) == ("*" in metric.name), metric.name


def test_a_name_of_the_users_own_is_not_mistaken_for_a_metric():
    assert find("my_reward") is None and find("mine/seen") is None and find("") is None and find("eval_") is None
    assert label_of("mine/seen") == "mine/seen"


def test_names_of_evaluations_and_functions_are_found():
    assert find("eval_kl").name == find("eval_long_prompts_kl").name == find("test_kl").name == "kl"
    assert find("eval_kl_coef").name == "kl_coef" and find("eval_long_ones_kl_coef").name == "kl_coef"
    assert label_of("eval_rewards/my_rule/mean") == "reward: my_rule"
    assert label_of("monitor/evidence/gold") == "evidence: gold"


def test_the_table_needs_no_torch():
    code = "import sys, trl_ext.monitoring.glossary; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
