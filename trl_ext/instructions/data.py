# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What the stages learn from: demonstrations, preference pairs and prompts."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.files import read_json_lines
from trl_ext.running.data import load_dataset_by_name, load_prompts, split_prompts

from .arguments import InstructArguments
from .preferences import convert_preferences

PROMPT_COLUMNS = ("prompt", "kind", "key")
_FORMS = (("messages",), ("prompt", "completion"), ("text",))


class StageData:
    """Everything that the stages learn from, each part read once, when it is first needed.

    Args:
        recipe: Names the data.
        tokenizer: The policy's; with a chat template, pairs are conversations.
        embedded: JSONL files of prompts to train and to evaluate on, with the columns that the embedded judge reads.
        seed: Of what is held out.

    Raises:
        ValueError: by every property, for data that cannot be used.
    """

    def __init__(
        self, recipe: InstructArguments, tokenizer: PreTrainedTokenizerBase, embedded: tuple[str, str] | None, seed: int
    ):
        self.recipe, self.tokenizer, self.embedded, self.seed = recipe, tokenizer, embedded, seed

    @cached_property
    def pairs(self) -> tuple[Dataset, Dataset]:
        """Preference pairs to train on and held-out ones, in TRL's format."""
        recipe = self.recipe
        train = self._pairs(str(recipe.preference_dataset), recipe.preference_split)
        if recipe.preference_eval_dataset is not None:
            held_out = self._pairs(recipe.preference_eval_dataset, recipe.preference_eval_split)
            return train, held_out.select(range(min(recipe.num_preference_eval, len(held_out))))
        return split_prompts(train, recipe.num_preference_eval, self.seed, "`--preference_eval_dataset`")

    def _pairs(self, name: str, split: str) -> Dataset:
        rows = load_dataset_by_name(name, self.recipe.preference_config, split)
        chat = self.tokenizer.chat_template is not None
        return convert_preferences(rows, name, chat=chat, skip_bad=self.recipe.preference_skip_bad)

    @cached_property
    def demonstrations(self) -> Dataset:
        """Demonstrations, or the chosen sides of the preference pairs that the reward model trains on."""
        if self.recipe.sft_dataset is not None:
            return load_demonstrations(self.recipe.sft_dataset, self.recipe.sft_split)
        return self.pairs[0].select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")

    @cached_property
    def ptx(self) -> Dataset:
        """Texts of PPO-ptx."""
        name = self.recipe.ptx_dataset
        return self.demonstrations if name is None else load_demonstrations(name, "train")

    @cached_property
    def prompts(self) -> tuple[Dataset, Dataset]:
        """Prompts of PPO and others to evaluate on, with the columns that the embedded judge reads where there are."""
        recipe = self.recipe
        if recipe.dataset_name is None:
            train, held_out = self.pairs
            unique = {json.dumps(prompt): prompt for prompt in train["prompt"]}
            train = Dataset.from_dict({"prompt": list(unique.values())})
            kept = [i for i, prompt in enumerate(held_out["prompt"]) if json.dumps(prompt) not in unique]
            if not kept:
                raise ValueError(
                    "Every prompt of the held-out pairs is also one to train on; give prompts with `--dataset_name`."
                )
            held_out = held_out.select(kept).select_columns(["prompt"])
            return train, held_out.select(range(min(recipe.num_eval_prompts, len(held_out))))
        if self.embedded is not None:
            train, evaluation = (_read(name) for name in self.embedded)
            return train, evaluation.select(range(min(recipe.num_eval_prompts, len(evaluation))))
        prompts = load_prompts(
            recipe.dataset_name, config=recipe.dataset_config, split=recipe.dataset_split, column=recipe.prompt_column
        ).select_columns("prompt")
        return split_prompts(prompts, recipe.num_eval_prompts, self.seed)


def load_demonstrations(name: str, split: str) -> Dataset:
    """Demonstrations by name.

    Raises:
        ValueError: for columns or a row that cannot be learned from.
    """
    dataset = load_dataset_by_name(name, None, split)
    columns = next((form for form in _FORMS if set(form) <= set(dataset.column_names)), None)
    if columns is None:
        raise ValueError(
            f"The demonstrations '{name}' have the columns {', '.join(dataset.column_names)}; they need 'prompt' and "
            "'completion', 'messages' or 'text'."
        )
    for column in columns:
        for number, value in enumerate(dataset[column], start=1):
            if not _can_be_learned(value):
                raise ValueError(
                    f"Row {number} of the demonstrations '{name}' has {value!r:.60} as '{column}'; give a text or a "
                    "list of messages, or remove the row."
                )
    if not len(dataset):
        raise ValueError(f"The demonstrations '{name}' (split '{split}') are empty; give at least one.")
    return dataset


def _can_be_learned(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(part, dict) and {"role", "content"} <= part.keys() for part in value)
    return isinstance(value, str) and bool(value.strip())


def _read(path: str) -> Dataset:
    return Dataset.from_list(read_json_lines(Path(path))).select_columns(list(PROMPT_COLUMNS))
