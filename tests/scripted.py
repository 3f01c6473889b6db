# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Trainers small enough for a test, and an engine whose completions depend on the prompt alone."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from tests.tiny_models import EOS_ID, tiny_causal_lm, tiny_tokenizer
from trl_ext import PPOConfig, PPOTrainer
from trl_ext.experience.engines import Completions


class ScriptedEngine:
    """Completions of 1 to 6 tokens made from the prompt's ids, two thirds of them ending with EOS."""

    def __call__(self, model: Any, prompt_ids: list[list[int]], on_progress: Any = None) -> Completions:
        ids, terminated = [], []
        for row in prompt_ids:
            seed = sum(row)
            completion = [10 + (seed * (i + 3) + i * i) % 90 for i in range(1 + seed % 6)]
            terminated.append(seed % 3 != 0)
            ids.append([*completion, EOS_ID] if terminated[-1] else completion)
        return Completions(ids, terminated, None)


def reward(completions: list[str], **kwargs: Any) -> list[float]:
    """Something that differs from text to text."""
    return [len(set(c)) / 4 + c.count("a") for c in completions]


def prompts(n: int) -> Dataset:
    """`n` different prompts of different lengths."""
    return Dataset.from_dict({"prompt": [f"the cat {'sat ' * (i % 4)}{i}" for i in range(n)]})


def trainer(folder: Path | str, *, scripted: bool = True, model: Any = None, **settings: Any) -> PPOTrainer:
    """A PPO trainer on a tiny Llama; `settings` go to `PPOConfig`, or to the trainer where it knows them."""
    names = (
        "peft_config",
        "quantization_config",
        "callbacks",
        "eval_dataset",
        "kl_controller",
        "train_dataset",
        "processing_class",
        "eval_reward_funcs",
        "compute_metrics",
    )
    for_trainer = {name: settings.pop(name) for name in (*names, "ptx_dataset") if name in settings}
    if isinstance(for_trainer.get("kl_controller"), str):
        settings["kl_controller"] = for_trainer.pop("kl_controller")  # by name, a field of PPOConfig
    reward_funcs = settings.pop("reward_funcs", reward)
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_ppo_epochs": 2,
        "max_completion_length": 8,
        "total_episodes": 16,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    for_trainer.setdefault("train_dataset", prompts(16))
    for_trainer.setdefault("processing_class", tiny_tokenizer())
    made = PPOTrainer(
        model if model is not None else tiny_causal_lm(),
        reward_funcs,
        PPOConfig(output_dir=str(folder), **{**defaults, **settings}),
        **for_trainer,
    )
    if scripted:
        made.generation_engine = ScriptedEngine()
    return made


def weights(made: PPOTrainer) -> dict[str, Any]:
    """Copies of every parameter, by name."""
    return {name: p.detach().clone() for name, p in made.model.named_parameters()}


def logs(made: PPOTrainer) -> list[dict[str, float]]:
    """The log lines of training steps."""
    return [line for line in made.state.log_history if "learning_rate" in line]
