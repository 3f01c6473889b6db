# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Options of a recipe that name its prompts, and the prompts to train and to evaluate on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from trl_ext.checks.fields import Count
from trl_ext.checks.options import CheckedOptions, option
from trl_ext.messages.printable import one_line

from .data import load_prompts, rename_prompts, split_prompts, wrap_in_conversation

__all__ = ["PromptOptions", "check_categories", "load_datasets"]

_MOST_CATEGORIES = 50


@dataclass
class PromptOptions(CheckedOptions):
    """Prompts to train and to evaluate on."""

    dataset_name: str | None = option(
        None, "Prompts: a .jsonl, .json, .parquet, .csv, .tsv or .txt file (also with .gz), a folder, or a Hub id."
    )
    dataset_config: str | None = option(None, "Configuration of a dataset of the Hub.")
    dataset_split: str = option("train", "Split of the dataset, also a slice: 'train[:1000]'.")
    dataset_filter: str | None = option(None, "Keep only the rows with 'column=value', for example 'label=1'.")
    chat_instruction: str | None = option(None, "Make texts a user's message; '{prompt}' in it stands for the text.")
    eval_dataset_name: str | None = option(None, "Prompts to evaluate on. Default: held out of `dataset_name`.")
    eval_dataset_config: str | None = option(None, "Configuration of the prompts to evaluate on.")
    eval_split: str = option("train", "Split of the prompts to evaluate on.")
    eval_filter: str | None = option(None, "As `dataset_filter`, for the prompts to evaluate on.")
    eval_prompt_column: str | None = option(None, "Column of the prompts to evaluate on. Default: `prompt_column`.")
    category_column: str | None = option(
        None, "Column with the category of each prompt to evaluate on: which categories lost is said at the end."
    )
    num_eval_prompts: Count = option(400, "Most prompts to evaluate on, before and after.")


def load_datasets(
    options: PromptOptions,
    seed: int,
    *,
    prompt_column: str,
    change: Callable[[Dataset], Dataset] = lambda dataset: dataset,
    keep_columns: bool = False,
    **train_options: Any,
) -> tuple[Dataset, Dataset]:
    """Load prompts to train on and prompts to evaluate on, with the column that `prompt_column` names.

    Args:
        options: Names of the data.
        seed: Of the choice of the prompts to evaluate on.
        prompt_column: Column of the prompts.
        change: Applied to both.
        keep_columns: Whether the other columns are kept, for reward functions that read them.
        train_options: Further arguments of `load_prompts` for the prompts to train on.
    """
    keep_columns = keep_columns or options.category_column is not None

    def load(name: str, config: str | None, split: str, **rows: Any) -> Dataset:
        dataset = change(load_prompts(name, config=config, split=split, keep_columns=keep_columns, **rows))
        return wrap_in_conversation(dataset, options.chat_instruction) if options.chat_instruction else dataset

    train = load(
        str(options.dataset_name),
        options.dataset_config,
        options.dataset_split,
        column=prompt_column,
        where=options.dataset_filter,
        **train_options,
    )
    if options.eval_dataset_name is None:
        train, held_out = split_prompts(train, options.num_eval_prompts, seed)
        check_categories(held_out, options.category_column)
        return rename_prompts(train, prompt_column), rename_prompts(held_out, prompt_column)
    held_out = load(
        options.eval_dataset_name,
        options.eval_dataset_config,
        options.eval_split,
        column=options.eval_prompt_column or prompt_column,
        where=options.eval_filter,
    ).shuffle(seed=seed)
    held_out = held_out.select(range(min(options.num_eval_prompts, len(held_out))))
    check_categories(held_out, options.category_column)
    return rename_prompts(train, prompt_column), rename_prompts(held_out, prompt_column)


def check_categories(prompts: Dataset, column: str | None) -> None:
    """Refuse a `category_column` that the prompts to evaluate on lack, or that has too many values to compare.

    Raises:
        ValueError: if so.
    """
    if column is None:
        return
    if column not in prompts.column_names:
        raise ValueError(
            f"`--category_column {one_line(column)}`: the prompts to evaluate on have no such column (columns: "
            f"{', '.join(prompts.column_names)})."
        )
    count = len({str(value) for value in prompts[column]})
    if count > _MOST_CATEGORIES:
        raise ValueError(
            f"`--category_column {one_line(column)}` has {count} values on {len(prompts)} prompts to evaluate on; name "
            f"a column with at most {_MOST_CATEGORIES}."
        )
