# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward models as users bring them: classifiers, and models that TRL's RewardTrainer really trained."""

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from tests.families.bases import base, config, folder_for, spread
from tests.real_tokenizers import real_tokenizer

# The easy feature that the trained reward models rank by: the last word of the answer.
_PROMPTS = ["Is it far to the river?", "Did she read the book", "Can you help me with it?", "Are they at home now"]
_GOOD = ["yes", "true", "right", "fine", "good", "kind", "warm", "light"]
_BAD = ["no", "false", "wrong", "poor", "bad", "rude", "cold", "dark"]
# Prompts with the better and the worse answer.
EXAMPLES = [
    (_PROMPTS[i % 4], f" I am sure that the answer is {good}", f" I am sure that the answer is {bad}")
    for i, (good, bad) in enumerate(zip(_GOOD, _BAD, strict=True))
]


def classifier(family: str = "qwen2", dtype: str = "float32") -> str:
    """Folder of a sequence classifier with the labels of toxicity models, random, and of its tokenizer."""
    folder = folder_for("classifier", family, dtype)
    if folder.is_dir():
        return str(folder)
    names = {0: "neutral", 1: "toxic", 2: "insult"}
    settings = config(family, num_labels=3, id2label=names, label2id={v: k for k, v in names.items()})
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForSequenceClassification.from_config(settings, dtype=torch.float32)
    spread(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    real_tokenizer(family).save_pretrained(folder)
    return str(folder)


def pairs(count: int = 32) -> Dataset:
    """[`EXAMPLES`] as preference pairs in TRL's format, with prompts of several lengths."""
    rows = [EXAMPLES[i % len(EXAMPLES)] for i in range(count)]
    return Dataset.from_list(
        [{"prompt": p * (1 + i % 3), "chosen": good, "rejected": bad} for i, (p, good, bad) in enumerate(rows)]
    )


def _train(family: str, dtype: str, folder: Any, peft_config: LoraConfig | None, steps: int) -> None:
    """Train on [`pairs`] with TRL's RewardTrainer, which appends the EOS token, and pads with it for lack of a pad.

    Where pad == eos, transformers therefore reads the reward at the token before the EOS.
    """
    source = base(family, dtype)
    load = dtype if peft_config is not None else "float32"
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=load)
    args = RewardConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=2e-2 if peft_config is not None else 1e-2,
        lr_scheduler_type="constant",
        max_length=64,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        seed=0,
    )
    tokenizer = real_tokenizer(family)
    with torch.random.fork_rng(devices=[]):
        trainer = RewardTrainer(model, args, train_dataset=pairs(), processing_class=tokenizer, peft_config=peft_config)
        trainer.train()
    trainer.save_model(str(folder))


def reward_model(family: str = "deepseek_v3", dtype: str = "float32", *, steps: int = 20) -> str:
    """Folder of a scalar reward model that ranks [`EXAMPLES`] right.

    Args:
        family: One of `FAMILIES`; "deepseek_v3" has pad == eos, "gpt_neox" and "llama" had no pad.
        dtype: Of the checkpoint; it is trained in float32.
        steps: Of RewardTrainer.
    """
    folder = folder_for("reward", family, dtype, steps)
    if folder.is_dir():
        return str(folder)
    _train(family, dtype, folder, None, steps)
    if dtype != "float32":
        settings = AutoConfig.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, config=settings, dtype=dtype)
        model.save_pretrained(folder)
    return str(folder)


def reward_adapter(family: str = "deepseek_v3", dtype: str = "bfloat16", *, steps: int = 20) -> str:
    """Make a LoRA reward adapter on `base(family, dtype)` by TRL's RewardTrainer, and return its folder.

    Args:
        family: One of `FAMILIES`.
        dtype: Of the base.
        steps: Of RewardTrainer.
    """
    folder = folder_for("reward-adapter", family, dtype, steps)
    if folder.is_dir():
        return str(folder)
    settings = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    _train(family, dtype, folder, settings, steps)
    return str(folder)
