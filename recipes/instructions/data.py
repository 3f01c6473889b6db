# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What the stages learn from: demonstrations, preference pairs and prompts."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from recipes.data import load_dataset_by_name, load_prompts, split_prompts

from .arguments import InstructArguments
from .preferences import convert_preferences

PROMPT_COLUMNS = ("prompt", "kind", "key")


def load_pairs(recipe: InstructArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[Dataset, Dataset]:
    """
    Preference pairs to train on and held-out ones, in TRL's format.

    Raises:
        ValueError: for pairs that cannot be used, see `convert_preferences`.
    """
    chat = tokenizer.chat_template is not None

    def load(name: str, split: str) -> Dataset:
        pairs = load_dataset_by_name(name, recipe.preference_config, split)
        return convert_preferences(pairs, name, chat=chat, skip_bad=recipe.preference_skip_bad)

    train = load(str(recipe.preference_dataset), recipe.preference_split)
    if recipe.preference_eval_dataset is not None:
        held_out = load(recipe.preference_eval_dataset, recipe.preference_eval_split)
        return train, held_out.select(range(min(recipe.num_preference_eval, len(held_out))))
    return split_prompts(train, recipe.num_preference_eval, seed)


def load_demonstrations(recipe: InstructArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> Dataset:
    """Demonstrations, or the chosen sides of the preference pairs that the reward model trains on."""
    if recipe.sft_dataset is not None:
        return load_dataset_by_name(recipe.sft_dataset, None, recipe.sft_split)
    pairs = load_pairs(recipe, tokenizer, seed)[0]
    return pairs.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")


def load_ppo_prompts(
    recipe: InstructArguments, tokenizer: PreTrainedTokenizerBase, eval_name: str | None, seed: int
) -> tuple[Dataset, Dataset]:
    """Prompts to train on and others to evaluate on, with the columns that the embedded judge reads where there are."""
    if recipe.dataset_name is None:
        train, held_out = load_pairs(recipe, tokenizer, seed)
        unique = {json.dumps(prompt): prompt for prompt in train["prompt"]}
        train = Dataset.from_dict({"prompt": list(unique.values())})
        kept = [i for i, prompt in enumerate(held_out["prompt"]) if json.dumps(prompt) not in unique]
        held_out = held_out.select(kept).select_columns(["prompt"])
        return train, held_out.select(range(min(recipe.num_eval_prompts, len(held_out))))
    if eval_name is not None:
        train, evaluation = _read(recipe.dataset_name), _read(eval_name)
        return train, evaluation.select(range(min(recipe.num_eval_prompts, len(evaluation))))
    prompts = load_prompts(
        recipe.dataset_name, config=recipe.dataset_config, split=recipe.dataset_split, column=recipe.prompt_column
    ).select_columns("prompt")
    return split_prompts(prompts, recipe.num_eval_prompts, seed)


def _read(path: str) -> Dataset:
    return Dataset.from_list(read_rows(Path(path))).select_columns(list(PROMPT_COLUMNS))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSONL in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)
