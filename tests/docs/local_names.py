# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tiny models in the place of those that pages name."""

import re
from collections.abc import Callable
from pathlib import Path

from peft import LoraConfig, get_peft_model

from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer


def _reward_adapter(folder: Path) -> str:
    """A LoRA reward model on the weights of the tiny policy, as TRL's `RewardTrainer` saves one."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    get_peft_model(tiny_classifier(["score"], arch="qwen2", layers=2), config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


# Names that a page may use, longest first where one begins another. A name of a folder works as well.
MODELS: dict[str, Callable[[Path], str]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": lambda folder: save_tiny(folder, tiny_causal_lm("qwen2")),
    "unitary/toxic-bert": lambda folder: save_tiny(folder, tiny_classifier()),
    "path/to/reward-model": lambda folder: save_tiny(folder, tiny_classifier(["score"], arch="llama")),
    "path/to/reward-adapter": _reward_adapter,
}


class LocalNames:
    """Folders for the names in a text, made when they are first asked for.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def in_place(self, text: str) -> str:
        """The text with a folder in the place of every name."""
        for name, make in MODELS.items():
            if name in text:
                text = text.replace(name, self._folder(name, make))
        return text

    def _folder(self, name: str, make: Callable[[Path], str]) -> str:
        folder = self.folder / re.sub(r"\W", "-", name)
        if not folder.exists():
            make(folder)
        return str(folder)
