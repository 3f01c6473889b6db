# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Data of the stages: demonstrations, preference pairs and prompts."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.files import read_json_lines
from trl_ext.running.data import load_dataset_by_name, load_prompts, split_prompts
from trl_ext.running.prompts import check_categories

from .options import PPOStage, PreferenceData, SupervisedStage
from .preferences import convert_preferences

PROMPT_COLUMNS = ("prompt", "kind", "key")
_FORMS = (("messages",), ("prompt", "completion"), ("text",))


class StageData:
    """The data of every stage; each part is read once, when it is first needed.

    Args:
        demonstrations: Names the demonstrations.
        preferences: Names the preference pairs.
        ppo: Names the prompts, and the texts of PPO-ptx.
        tokenizer: The policy's; with a chat template, pairs are conversations.
        embedded: JSONL files of prompts to train and to evaluate on, with the columns that the embedded judge reads.
        prompt_column: Column of the prompts.
        num_eval_prompts: Most prompts to evaluate on.
        seed: Seed of the choice of held-out rows.
        category_column: Column of the prompts with the category of each, which is kept.

    Raises:
        ValueError: by every property, for data that cannot be used.
    """

    def __init__(
        self,
        demonstrations: SupervisedStage,
        preferences: PreferenceData,
        ppo: PPOStage,
        tokenizer: PreTrainedTokenizerBase,
        *,
        embedded: tuple[str, str] | None,
        prompt_column: str,
        num_eval_prompts: int,
        seed: int,
        category_column: str | None = None,
    ):
        self._prompt_column = prompt_column
        self.preferences, self.embedded = preferences, embedded
        self._sft, self._ppo, self._tokenizer = demonstrations, ppo, tokenizer
        self._num_eval_prompts, self._seed, self._category_column = num_eval_prompts, seed, category_column

    def check(self, stages: Sequence[str], *, ptx: bool) -> None:
        """Read all the data of `stages`, so that a fault in the data of the last stage is found before the first.

        Args:
            stages: Names of the stages that will run.
            ptx: Whether PPO has a language-model loss.

        Raises:
            ValueError: for data that cannot be used.
        """
        needed = {
            "demonstrations": "sft" in stages,
            "pairs": "reward" in stages and self.preferences.preference_dataset is not None,
            "prompts": "ppo" in stages or "eval" in stages,
            "ptx": "ppo" in stages and ptx,
        }
        for part, is_needed in needed.items():
            if is_needed:
                getattr(self, part)

    @cached_property
    def pairs(self) -> tuple[Dataset, Dataset]:
        """Preference pairs to train on and held-out ones, in TRL's format."""
        given = self.preferences
        train = self._pairs(str(given.preference_dataset), given.preference_split)
        if given.preference_eval_dataset is not None:
            held_out = self._pairs(given.preference_eval_dataset, given.preference_eval_split)
            return train, held_out.select(range(min(given.num_preference_eval, len(held_out))))
        return split_prompts(train, given.num_preference_eval, self._seed, "`--preference_eval_dataset`")

    def _pairs(self, name: str, split: str) -> Dataset:
        rows = load_dataset_by_name(name, self.preferences.preference_config, split)
        chat = self._tokenizer.chat_template is not None
        return convert_preferences(rows, name, chat=chat, skip_bad=self.preferences.preference_skip_bad)

    @cached_property
    def demonstrations(self) -> Dataset:
        """Demonstrations, or the chosen sides of the preference pairs that the reward model trains on."""
        if self._sft.sft_dataset is not None:
            return load_demonstrations(self._sft.sft_dataset, self._sft.sft_split)
        return self.pairs[0].select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")

    @cached_property
    def ptx(self) -> Dataset:
        """Texts of PPO-ptx."""
        name = self._ppo.ptx_dataset
        return self.demonstrations if name is None else load_demonstrations(name, "train")

    @cached_property
    def prompts(self) -> tuple[Dataset, Dataset]:
        """Prompts of PPO and prompts to evaluate on, in the embedded example with the columns that the judge reads."""
        given, most, category = self._ppo, self._num_eval_prompts, self._category_column
        if given.dataset_name is None:
            if category is not None:
                raise ValueError(
                    "`--category_column` names a column of the prompts; give prompts with `--dataset_name`."
                )
            train, held_out = self.pairs
            unique = {json.dumps(prompt): prompt for prompt in train["prompt"]}
            train = Dataset.from_dict({"prompt": list(unique.values())})
            kept = [i for i, prompt in enumerate(held_out["prompt"]) if json.dumps(prompt) not in unique]
            if not kept:
                raise ValueError(
                    "Every prompt of the held-out pairs is also one to train on; give prompts with `--dataset_name`."
                )
            held_out = held_out.select(kept).select_columns(["prompt"])
            return train, held_out.select(range(min(most, len(held_out))))
        if self.embedded is not None:
            train, evaluation = (_read(name) for name in self.embedded)
            check_categories(evaluation, category)
            return train, evaluation.select(range(min(most, len(evaluation))))
        prompts = load_prompts(
            given.dataset_name,
            config=given.dataset_config,
            split=given.dataset_split,
            column=self._prompt_column,
            keep_columns=category is not None,
        )
        check_categories(prompts, category)
        return split_prompts(prompts.select_columns(["prompt", *filter(None, [category])]), most, self._seed)


def load_demonstrations(name: str, split: str) -> Dataset:
    """Load demonstrations by name.

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
