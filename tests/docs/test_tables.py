# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tables and figures of README and documentation against the code: options, plug-ins, metrics, lines."""

import dataclasses
import inspect
import re
from fnmatch import fnmatch

import transformers
import trl

import trl_ext
from trl_ext import kl_control, rewards
from trl_ext.checks.combinations import NOT_GATHERED, NOT_WITH_FSDP
from trl_ext.critic_modes import CRITIC_MODES
from trl_ext.monitoring.glossary import GLOSSARY

from .pages import README, ROOT, quoted, table

# What `trl.experimental.ppo.PPOConfig` of TRL 1.12 adds to `TrainingArguments`; later TRL has no PPO to ask.
TRL_PPO_FIELDS = [
    "batch_size",
    "cliprange",
    "cliprange_value",
    "dataset_num_proc",
    "ds3_gather_for_generation",
    "gamma",
    "kl_coef",
    "kl_estimator",
    "lam",
    "local_batch_size",
    "local_mini_batch_size",
    "local_rollout_forward_batch_size",
    "micro_batch_size",
    "mini_batch_size",
    "missing_eos_penalty",
    "model_adapter_name",
    "num_mini_batches",
    "num_ppo_epochs",
    "num_sample_generations",
    "num_total_batches",
    "ref_adapter_name",
    "response_length",
    "reward_model_path",
    "sft_model_path",
    "stop_token",
    "stop_token_id",
    "temperature",
    "total_episodes",
    "vf_coef",
    "whiten_rewards",
    "world_size",
]


def own_fields(config: type) -> set[str]:
    base = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    return {field.name for field in dataclasses.fields(config)} - base


def test_tables_cover_the_fields_of_trl() -> None:
    ppo = {name for row in table("trl-ppo") for name in quoted(row[0])}
    assert ppo == set(TRL_PPO_FIELDS)
    grpo = [name for row in table("trl-grpo") for name in quoted(row[0])]
    fields = own_fields(trl.GRPOConfig)
    assert sorted(f for f in fields if not any(fnmatch(f, name) for name in grpo)) == []


def test_tables_name_options_that_exist() -> None:
    config = trl_ext.PPOConfig
    known = {field.name for field in dataclasses.fields(config)} | set(dir(config))
    known |= set(inspect.signature(trl_ext.PPOTrainer).parameters) | set(trl_ext.__all__) | set(rewards.__all__)
    words = {"k2", "PPOTrainer", "PeftModel", "None", "center", "scale"}
    for row in table("trl-ppo") + table("trl-grpo"):
        for name in [n for cell in row[1:] for n in quoted(cell)]:
            assert name.split("=")[0] in known | words, f"{row[0]}: {name}"
        if row[1].startswith(("the same", "properties of the same name")):
            assert [n for n in quoted(row[0]) if n not in known] == []
    for row in table("details"):
        assert [n for n in quoted(row[3]) if n not in known] == []
    assert [row[0] for row in table("details")] == [str(i) for i in range(1, 21)] + ["+"]


def test_plug_ins_that_the_readme_names_can_be_imported() -> None:
    classes = [name for row in table("plug-ins") for name in re.findall(r"`([A-Z]\w+)`", row[1] + row[2])]
    assert "AdaptiveKL" in classes and "PAR" in classes
    assert [name for name in classes if not hasattr(trl_ext, name) and not hasattr(rewards, name)] == []
    controllers = {name for name in kl_control.__all__ if name.endswith("KL")}
    of_a_kind = {name for name in rewards.__all__ if name.endswith("Reward")}
    assert controllers <= set(classes) and of_a_kind <= set(classes)
    critics = next(row[1] for row in table("plug-ins") if row[0].startswith("critics"))
    assert re.findall(r'`"(\w+)"`', critics) == list(CRITIC_MODES)


def test_the_readme_is_short_and_takes_the_metrics_from_the_glossary() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    known = {metric.name: metric for metric in GLOSSARY}
    rows = table("eight metrics")
    assert len(rows) == 8
    for name, meaning, healthy in rows:
        metric = known[name.strip("`")]
        assert (meaning, healthy) == (f"{metric.label}, {metric.unit}", metric.healthy)


def test_the_page_on_memory_names_every_setting_that_is_refused_with_a_sharder():
    text = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    for sharder, settings in (("FSDP", NOT_WITH_FSDP), ("ZeRO-3", NOT_GATHERED)):
        listed = re.search(rf"Refused with {sharder}: (.+?)(?:\n\n|\Z)", text, re.DOTALL)
        assert listed is not None and not set(settings) - set(quoted(listed[1])), sharder
