# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Datasets by name (a file, a folder or a dataset of the Hub), and prompts in one column, `prompt`."""

import random
import warnings
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, ReadInstruction, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase

from trl_ext.messages.printable import first_line
from trl_ext.text.prompt_column import PROMPT, find_prompt_column, read_prompt

from .faults import file_ending, find_fault, is_empty

__all__ = [
    "cut_prompts",
    "load_prompts",
    "looks_like_path",
    "rename_prompts",
    "split_prompts",
    "wrap_in_conversation",
]

FILE_FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
_OPTIONS = {".txt": {"encoding": "utf-8-sig"}, ".tsv": {"sep": "\t"}}
_PACKED = ".parquet"  # has a compression of its own
EXTENSIONS = f"{', '.join(FILE_FORMATS)}, and all but {_PACKED} also with .gz"
_ROW = "number of the row"


def load_prompts(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    column: str = PROMPT,
    min_toxicity: float | None = None,
    where: str | None = None,
    keep_columns: bool = False,
) -> Dataset:
    """Load prompts by name and bring them into TRL's prompt-only format.

    Args:
        name: A dataset of the Hub, a file (JSONL, JSON, parquet, CSV, TSV, or txt with one prompt a line; text may be
            compressed with gzip), or a folder: one written by `save_to_disk`, or one of such files.
        config: Configuration of a dataset of the Hub.
        split: Split, also a slice of one (`"train[:100]"`, `"train[:10%]"`). A single file has every split.
        column: Column of the prompts, as `prompt_column` of `PPOConfig`. Its values are texts, conversations (lists of
            messages), or, as in real-toxicity-prompts, dictionaries with `text` and `toxicity`.
        min_toxicity: Keep only prompts whose `toxicity` is above this.
        where: `"column=value"`: keep only rows in which the column, as text, has this value.
        keep_columns: Keep the source's other columns.

    Returns:
        A dataset with the column `prompt`, and, where the source has one, the text column `continuation`.

    Raises:
        ValueError: if there is no such file, split or column, or no prompt in it or left of it.
    """
    dataset = _not_empty(load_dataset_by_name(name, config, split), name, split)
    dataset = dataset.add_column(_ROW, list(range(1, len(dataset) + 1)))  # rows keep their number after filters
    if where is not None:
        dataset = _keep_where(dataset, where, name)
    columns = _columns(dataset)
    given, column = column, _prompt_column(columns, column, name)
    if min_toxicity is not None:
        dataset = _keep_toxic(dataset, column, min_toxicity, name)
    has_continuation = "continuation" in columns

    def normalize(row: dict[str, Any]) -> dict[str, Any]:
        new = {"prompt": _prompt_of(row[column], f"Row {row[_ROW]} of '{name}'", column)}
        if has_continuation:
            new["continuation"] = _text_of(row["continuation"]) or ""
        return new

    # Conversations in the place of a column "prompt" hold the answers, which a reward function may compare with.
    replaced = [_ROW, *([column] if column == given else [])] if keep_columns else dataset.column_names
    return dataset.map(normalize, remove_columns=replaced, desc=f"Reading {name}")


def rename_prompts(dataset: Dataset, column: str) -> Dataset:
    """Return prompts in the column that `prompt_column` names, in the place of `prompt`."""
    return dataset if column == PROMPT else dataset.rename_column(PROMPT, column)


def _not_empty(dataset: Dataset, name: str, split: str) -> Dataset:
    if len(dataset) == 0:
        raise ValueError(f"The dataset '{name}' (split '{split}') is empty; give one with at least one prompt.")
    return dataset


def _prompt_column(columns: list[str], given: str, name: str) -> str:
    try:
        found = find_prompt_column(columns, given)
    except ValueError as error:
        raise ValueError(f"The dataset '{name}' {error}") from None
    if found is None and columns == ["text"]:
        found = "text"  # a .txt file has no other name for its lines
    if found is None:
        raise ValueError(
            f"The dataset '{name}' has no column '{given}' (columns: {', '.join(columns)}); name the one that holds "
            "the prompts with `--prompt_column`."
        )
    return found


def _columns(dataset: Dataset) -> list[str]:
    return [name for name in dataset.column_names if name != _ROW]


def cut_prompts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    min_tokens: int | None,
    max_tokens: int | None,
    seed: int = 0,
    keep: str | None = None,
) -> Dataset:
    """Cut each text, prompt and continuation together, to a random number of tokens between the bounds.

    This is how Hugging Face's detoxification guide makes prompts of 10 to 15 tokens. Texts of fewer than `min_tokens`
    are dropped. Without `max_tokens` the prompts stay whole, and only the short ones are dropped. The column `keep`
    stays where there is one; all others are dropped.

    Raises:
        ValueError: for bounds that exclude each other, conversations, or if nothing is left.
    """
    kept = [keep] if keep in dataset.column_names else []
    if min_tokens is None and max_tokens is None:
        return dataset.select_columns(["prompt", *kept])
    low = 1 if min_tokens is None else min_tokens
    if low < 1 or (max_tokens is not None and max_tokens < low):
        raise ValueError(
            f"`prompt_min_tokens` {min_tokens} and `prompt_max_tokens` {max_tokens} must be at least 1 and in order."
        )
    if not isinstance(dataset[0]["prompt"], str):
        raise ValueError("`prompt_min_tokens` and `prompt_max_tokens` cut texts; leave them out for conversations.")
    generator = random.Random(seed)
    prompts, rows = [], []
    for number, row in enumerate(dataset):
        text = row["prompt"] + (row.get("continuation", "") if max_tokens is not None else "")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        length = len(ids) if max_tokens is None else generator.randint(low, max_tokens)
        if len(ids) >= low:
            prompts.append(text if length >= len(ids) else tokenizer.decode(ids[:length]))
            rows.append(number)
    if not prompts:
        raise ValueError(
            f"None of the {len(dataset)} prompts has {low} tokens; lower `prompt_min_tokens` or leave it out."
        )
    return Dataset.from_dict({"prompt": prompts} | {name: dataset.select(rows)[name][:] for name in kept})


def wrap_in_conversation(dataset: Dataset, instruction: str) -> Dataset:
    """Make each text the user's message of a conversation; `{prompt}` in `instruction` stands for the text.

    Raises:
        ValueError: if `instruction` has no `{prompt}`, or the prompts are conversations already.
    """
    if "{prompt}" not in instruction:
        raise ValueError(f"`chat_instruction` must contain {{prompt}}, got '{instruction}'.")
    if not isinstance(dataset[0]["prompt"], str):
        raise ValueError("`chat_instruction` is for text prompts, these are conversations already; leave it out.")

    def wrap(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": instruction.replace("{prompt}", row["prompt"])}]}

    return dataset.map(wrap, remove_columns="prompt", desc="Making conversations")


def split_prompts(
    dataset: Dataset, size: int, seed: int = 0, remedy: str = "`--eval_dataset_name`"
) -> tuple[Dataset, Dataset]:
    """Hold out `size` prompts, at most half of them, for evaluation.

    Raises:
        ValueError: if there is only one prompt; `remedy` names the option with which others can be given.
    """
    if len(dataset) < 2:
        raise ValueError(f"One row cannot be both trained on and evaluated on; give more rows, or {remedy}.")
    parts = dataset.train_test_split(min(size, len(dataset) // 2), seed=seed)
    return parts["train"], parts["test"]


def looks_like_path(name: str) -> bool:
    """Return whether `name` can only be a file or folder, because no repository of the Hub has such a name."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or file_ending(Path(name)) in FILE_FORMATS


def load_dataset_by_name(name: str, config: str | None, split: str) -> Dataset:
    path = Path(name).expanduser()
    if path.is_file():
        return _load_file(path, split)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _load_saved(path, split)
    if not path.is_dir() and looks_like_path(name):
        raise ValueError(f"The dataset '{name}' does not exist; give a file, a folder or a dataset of the Hub.")
    try:
        dataset = load_dataset(str(path) if path.is_dir() else name, config, split=split)
        if path.is_dir():
            _warn_of_other_kinds(path, dataset.info.builder_name)
        return dataset
    except (OSError, ValueError, DatasetGenerationError) as error:
        where = "folder" if path.is_dir() else "file or folder, and on the Hub"
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"The dataset '{name}' cannot be loaded ({where}): {reason}.") from error


def _warn_of_other_kinds(folder: Path, read: str | None) -> None:
    """Warn of files that `datasets`, which reads files of one kind in a folder, has left out."""
    endings = {file_ending(file) for file in folder.rglob("*") if file.is_file()} & FILE_FORMATS.keys()
    others = sorted(ending for ending in endings if FILE_FORMATS[ending] != read)
    if read in FILE_FORMATS.values() and others:
        warnings.warn(
            f"Of the folder '{folder}' the files of the kind '{read}' are read, and those that end in "
            f"{', '.join(others)} are not; give a folder with files of one kind, or the file.",
            stacklevel=2,
        )


def _load_file(path: Path, split: str) -> Dataset:
    ending = file_ending(path)
    if ending not in FILE_FORMATS or path.suffixes[-2:] == [_PACKED, ".gz"]:
        raise ValueError(f"The dataset '{path}' has an unknown ending '{path.suffix}'; known are {EXTENSIONS}.")
    if is_empty(path):
        raise ValueError(f"The dataset '{path}' is empty; give one with at least one prompt.")
    files = {split.split("[")[0] or "train": str(path)}
    try:
        dataset = load_dataset(FILE_FORMATS[ending], data_files=files, split=split, **_OPTIONS.get(ending, {}))
        dataset.data.validate(full=True)  # JSON is read without a look at whether texts are UTF-8
        return dataset
    except (OSError, EOFError, ValueError, DatasetGenerationError) as error:
        if fault := find_fault(path):
            raise ValueError(f"{fault} of '{path}'; mend or remove it.") from error
        reason = first_line(error.__cause__ or error)
        if "corresponds to no data" in reason:
            raise ValueError(f"The dataset '{path}' has no row in the split '{split}'; give one with rows.") from error
        if "instruction format" in reason or "Split name" in reason:
            raise ValueError(_no_split(split)) from error
        raise ValueError(f"The dataset '{path}' cannot be read as {path.suffix[1:]}: {reason}.") from error


def _load_saved(path: Path, split: str) -> Dataset:
    """Return a split or slice of a folder of `save_to_disk`; a dataset without splits has every one."""
    saved = load_from_disk(str(path))
    parts = saved if isinstance(saved, DatasetDict) else {split.split("[")[0]: saved}
    try:
        slices = ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in parts.items()})
    except (ValueError, AssertionError) as error:
        if "Unknown split" in str(error):
            raise ValueError(
                f"The dataset '{path}' has no split '{split.split('[')[0]}'; its splits are {', '.join(parts)}."
            ) from None
        raise ValueError(_no_split(split)) from None
    ranges = ((parts[part.splitname], range(part.from_, part.to)) for part in slices)
    return concatenate_datasets([rows.select(chosen or []) for rows, chosen in ranges])


def _no_split(split: str) -> str:
    return f"'{split}' is no split; write 'train', or a slice such as 'train[:100]'."


def _keep_where(dataset: Dataset, where: str, name: str) -> Dataset:
    column, equals, value = where.partition("=")
    if not equals or column not in _columns(dataset):
        raise ValueError(
            f"The filter '{where}' must be 'column=value' with a column of '{name}': {', '.join(_columns(dataset))}."
        )
    kept = dataset.filter(lambda cell: str(cell) == value, input_columns=column)
    if len(kept) == 0:
        raise ValueError(f"No row of '{name}' has {where} (out of {len(dataset)}); change or drop the filter.")
    return kept


def _keep_toxic(dataset: Dataset, column: str, minimum: float, name: str) -> Dataset:
    first = dataset[0][column]
    if not isinstance(first, dict) or "toxicity" not in first:
        raise ValueError(
            f"`min_prompt_toxicity` needs '{column}.toxicity', which '{name}' does not have; leave it out."
        )
    # real-toxicity-prompts has rows whose toxicity is unknown
    kept = dataset.filter(lambda cell: (cell["toxicity"] or 0.0) > minimum, input_columns=column)
    if len(kept) == 0:
        raise ValueError(
            f"No prompt of '{name}' has a toxicity above {minimum} (out of {len(dataset)}); lower "
            "`min_prompt_toxicity`."
        )
    return kept


def _text_of(value: Any) -> Any:
    return value.get("text") if isinstance(value, dict) else value


def _prompt_of(value: Any, where: str, column: str) -> Any:
    try:
        prompt = read_prompt(value, column)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if isinstance(prompt, list) and prompt and all(isinstance(m, dict) and "role" in m for m in prompt):
        return prompt
    if prompt is None:
        raise ValueError(f"{where} has no '{column}'; every row needs one (in a CSV file NA and null are none).")
    if not isinstance(prompt, str):
        raise ValueError(
            f"{where} has {prompt!r:.60} as '{column}'; a prompt is a text, a dictionary with 'text', or a list of "
            "messages."
        )
    if not prompt.strip():
        raise ValueError(f"{where} has an empty '{column}'; remove it from the dataset.")
    return prompt
