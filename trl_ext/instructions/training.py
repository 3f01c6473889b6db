# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Supervised fine-tuning and reward-model training with TRL's trainers."""

import copy
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.utils import logging as hf_logging
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from trl_ext.actor_critic.loading import keep_differentiable, load_policy
from trl_ext.actor_critic.merge import merge
from trl_ext.actor_critic.precision import adapters_in_float32, with_dtype
from trl_ext.config import PPOConfig
from trl_ext.files import write_json
from trl_ext.folders import is_whole_model, remove, whole_folder

from . import checkpoints
from .options import RewardStage, SupervisedStage

CHECKPOINTS = "checkpoints"
# Settings of the PPO run that hold for the other two trainings as well.
_SHARED = (
    "bf16", "fp16", "use_cpu", "gradient_checkpointing", "optim", "seed", "disable_tqdm", "report_to",
    "dataloader_num_workers", "max_grad_norm", "weight_decay",
)  # fmt: skip


def train_supervised(
    folder: Path,
    model_name: str,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    args: PPOConfig,
    stage: SupervisedStage,
    *,
    init_kwargs: dict[str, Any],
    peft_config: LoraConfig | None,
) -> dict[str, Any]:
    """Fine-tune `model_name` on demonstrations into `folder/model`, in full precision: a LoRA adapter is merged.

    Merged, the result is one base for the policy and the reward adapters after it. A model that is there and whole is
    not trained again.

    Returns:
        `model` (folder) and the mean `loss` of the last tenth of the steps, nats per token.
    """
    output, notes = folder / "model", folder / "training.json"
    if not is_whole_model(output):
        own = folder / CHECKPOINTS / output.name
        shared = _settings(args, own, stage.sft_learning_rate, stage.sft_epochs, stage.sft_batch_size)
        with _renamed():
            settings = SFTConfig(**shared, max_length=stage.sft_max_length, model_init_kwargs=None)
        set_seed(args.seed)
        model = load_policy(model_name, trained=peft_config is None, **init_kwargs)
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=dataset,
            processing_class=copy.deepcopy(tokenizer),
            peft_config=peft_config,
        )
        adapters_in_float32(trainer.model)
        checkpoints.train(trainer)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        last = losses[-max(1, len(losses) // 10) :]
        write_json(notes, {"loss": sum(last) / len(last) if last else None})
        adapter = None if peft_config is None else folder / "adapter"
        with whole_folder(adapter or output, replace=True) as target:
            _save(trainer, tokenizer, target)
        if adapter is not None:
            # The quantized base is rounded anew when the merged model is quantized, so its roundings are not kept.
            with whole_folder(output, replace=True) as target:
                merge(adapter, target, original_base=True, base_model=model_name)
                tokenizer.save_pretrained(target)
    remove(folder / CHECKPOINTS)
    return {"model": str(output), **json.loads(notes.read_text(encoding="utf-8"))}


def _save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    trainer.save_model(str(target))
    tokenizer.save_pretrained(target)


def train_reward_model(
    folder: Path,
    output: Path,
    model_name: str,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    args: PPOConfig,
    stage: RewardStage,
    *,
    seed: int,
    init_kwargs: dict[str, Any],
    peft_config: LoraConfig | None,
) -> None:
    """Train one Bradley-Terry reward model from `model_name` and save it (with LoRA: its adapter) in `output`.

    A model that is there and whole is not trained again.

    Args:
        folder: Folder of the checkpoints; each model has a folder of its own in it.
        seed: Seed of the head and of the order of the pairs.
    """
    own = folder / CHECKPOINTS / output.name
    if is_whole_model(output):
        remove(own)
        return
    shared = _settings(args, own, stage.reward_learning_rate, stage.reward_epochs, stage.reward_batch_size)
    with _renamed():
        settings = RewardConfig(**shared | {"seed": seed}, max_length=stage.reward_max_length)
    set_seed(seed)
    model = load_reward_model(model_name, with_dtype(init_kwargs, trained=peft_config is None))
    adapter = None if peft_config is None else replace(peft_config, task_type="SEQ_CLS", modules_to_save=["score"])
    columns = [name for name in ("prompt", "chosen", "rejected", "margin") if name in pairs.column_names]
    trainer = RewardTrainer(
        model=model,
        args=settings,
        train_dataset=pairs.select_columns(columns),
        processing_class=copy.deepcopy(tokenizer),
        peft_config=adapter,
    )
    adapters_in_float32(trainer.model)
    if len(trainer.train_dataset) == 0:
        raise ValueError(
            f"Every preference pair is longer than `reward_max_length` {stage.reward_max_length}; raise it."
        )
    checkpoints.train(trainer, output.name)
    with whole_folder(output, replace=True) as target:
        _save(trainer, tokenizer, target)
    remove(own)


def load_reward_model(model_name: str, init_kwargs: dict[str, Any]) -> PreTrainedModel:
    """Load a model with a scalar head drawn from N(0, 1 / sqrt(d + 1)), as in lm-human-preferences (detail 8)."""
    init_kwargs = dict(init_kwargs)
    quantization: BitsAndBytesConfig | None = init_kwargs.get("quantization_config")
    if quantization is not None:
        init_kwargs["quantization_config"] = copy.deepcopy(quantization)
        init_kwargs["quantization_config"].llm_int8_skip_modules = ["score"]  # it is trained, so it stays as it is
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # it would report at length that the head is new
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            model_name, num_labels=1, **{"dtype": "auto", **init_kwargs}
        )
    finally:
        hf_logging.set_verbosity(verbosity)
    keep_differentiable(model)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"'{model_name}' ({type(model).__name__}) has no linear `score` head to train; use a decoder such as "
            "Llama or Qwen, or give a trained `--reward_model`."
        )
    nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return model


@contextmanager
def _renamed() -> Iterator[None]:
    """Run a block without the warning that transformers has renamed `gradient_checkpointing`; older ones have not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
        yield


def _settings(args: PPOConfig, folder: Path, learning_rate: float, epochs: float, batch_size: int) -> dict[str, Any]:
    micro = min(batch_size, args.per_device_train_batch_size)
    while batch_size % micro:
        micro -= 1
    return {name: getattr(args, name) for name in _SHARED} | {
        "output_dir": str(folder),
        "learning_rate": learning_rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch_size // micro,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "logging_steps": 0.02,
        "save_strategy": "steps",
        "save_steps": 0.2,
        "save_total_limit": None,  # `checkpoints.train` deletes those that are no longer needed
    }
