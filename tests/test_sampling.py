# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`local_rollout_forward_batch_size` 0: the plan decides how many completions are sampled at a time."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext import PPOConfig, PPOTrainer, sampling
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.planner import plan as planner
from trl_ext.planner.plan import GIB, plan, sampling_batch
from trl_ext.sampling import sampled_at_a_time, setup_of


def config(folder: Path, **settings: Any) -> PPOConfig:
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 64, "max_completion_length": 40}
    settings = {"local_rollout_forward_batch_size": 0, "use_cpu": True, "report_to": "none"} | sizes | settings
    return PPOConfig(output_dir=str(folder), **settings)


def adapters() -> ActorCritic:
    return build_actor_critic(
        tiny_causal_lm(hidden_size=64), "adapter", peft_config=LoraConfig(r=4), critic_lora_rank=2
    )


def test_the_planner_is_told_what_runs(tmp_path):
    settings = {"gradient_checkpointing_kwargs": {"every_n_layers": 2}, "policy_ema_decay": 0.9}
    settings |= {"cache_implementation": "static"}
    setup = setup_of(config(tmp_path, critic="adapter", critic_lora_rank=2, optim="sgd", **settings), adapters())
    assert (setup.quantization, setup.critic, setup.rank, setup.critic_rank) == ("none", "adapter", 4, 2)
    assert (setup.micro_batch, setup.rollout, setup.completion, setup.prompt) == (4, 256, 40, 512)
    assert (setup.every_n_layers, setup.policy_ema, setup.optimizer, setup.dtype) == (2, True, "sgd", "float32")
    assert setup.cache_implementation == "static"
    full = ActorCritic(tiny_causal_lm().bfloat16(), "copy")
    settings = {"gradient_checkpointing": False, "max_prompt_length": 9, "optim": "adafactor"}
    setup = setup_of(config(tmp_path, critic="copy", **settings), full)
    assert (setup.rank, setup.critic, setup.prompt, setup.gradient_checkpointing) == (0, "copy", 9, False)
    assert setup.optimizer == "adamw_torch"


def test_as_many_are_sampled_as_the_card_has_room_for(tmp_path, monkeypatch, caplog):
    """The next power of two does not fit into what the plan calls usable; the command plans the same."""
    args, model = config(tmp_path, critic="adapter", critic_lora_rank=2), adapters()
    setup = setup_of(args, model)
    other = build_actor_critic(tiny_causal_lm(), "head", peft_config=LoraConfig(r=4))
    other.critic_kind = "model"  # LoRA with a critic that is another model: not planned
    monkeypatch.setattr(planner, "CUDA_CONTEXT", 0)
    monkeypatch.setattr(ActorCritic, "device", torch.device("cuda"))

    def peak(batch: int) -> int:
        return plan(model.config, dataclasses.replace(setup, generation_batch=batch)).phase_peak("generate")

    card = (peak(16) + peak(32)) / 2 / planner.USABLE_FRACTION
    memory = SimpleNamespace(total_memory=card)
    monkeypatch.setattr(sampling.torch.cuda, "get_device_properties", lambda _: memory)
    assert sampled_at_a_time(args, model) == sampling_batch(model.config, setup, card / GIB) == 16
    memory.total_memory = 100 * GIB
    assert sampled_at_a_time(args, model) == 256, "a whole rollout"
    memory.total_memory = 1
    assert sampled_at_a_time(args, model) == 1
    assert sampled_at_a_time(args, other) == 64 and "is taken as 64" in caplog.text


def test_an_adapter_without_a_rank_is_not_planned(tmp_path):
    without = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = build_actor_critic(tiny_causal_lm(), peft_config=without)
    with pytest.raises(ValueError, match=r"without a rank \(IA3Config\) cannot be planned"):
        setup_of(config(tmp_path), model)


def test_on_a_cpu_a_rollout_is_sampled_at_once_up_to_a_bound(tmp_path):
    prompts = Dataset.from_dict({"prompt": [f"the cat sat {i}" for i in range(8)]})
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_completion_length": 4}
    args = config(tmp_path, total_episodes=8, gradient_checkpointing=False, disable_tqdm=True, **sizes)
    trainer = PPOTrainer(
        tiny_causal_lm(),
        lambda completions, **_: [0.0] * len(completions),
        args,
        prompts,
        processing_class=tiny_tokenizer(),
    )
    assert trainer.generation_engine.batches.size == 8
    trainer.train()
    assert trainer.state.global_step == 4
    assert sampled_at_a_time(config(tmp_path), trainer.model) == 64
    with pytest.raises(ValueError, match="`local_rollout_forward_batch_size` must be 0 or more"):
        config(tmp_path, local_rollout_forward_batch_size=-1)
