# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models, tokenizers and prompts by name: a hub id, a folder or a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.text.rows import render as render_conversation

ADAPTER_CONFIG = "adapter_config.json"

Prompt = str | list[dict[str, str]]


def load_model(name: str) -> PreTrainedModel:
    """A causal language model in eval mode, on the accelerator if there is one; an adapter is put on its base model.

    Raises:
        ValueError: If nothing of that name is a causal language model.
    """
    _check_exists(name)
    auto = AutoPeftModelForCausalLM if (Path(name) / ADAPTER_CONFIG).is_file() else AutoModelForCausalLM
    try:
        model = auto.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{name}' cannot be loaded as a causal language model: {_first_line(error)}") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        torch.nn.Module.to(model, accelerator)
    return model.eval()


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a model, or with the base model of an adapter; it can always pad.

    Raises:
        ValueError: If there is none.
    """
    _check_exists(name)
    source = name
    if (Path(name) / ADAPTER_CONFIG).is_file() and not (Path(name) / "tokenizer_config.json").is_file():
        source = PeftConfig.from_pretrained(name).base_model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{source}' has no tokenizer that can be loaded: {_first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_prompts(source: str, column: str = "prompt", split: str = "train", limit: int | None = None) -> list[Prompt]:
    """The first prompts of a data set.

    Args:
        source: A `.jsonl`, `.json`, `.csv` or `.parquet` file, a `.txt` file with one prompt a line, a folder
            written by `save_to_disk`, or a hub id.
        column: Holds texts, dictionaries with `text` (as in real-toxicity-prompts) or conversations.
        split: Split of a hub data set or of a saved `DatasetDict`.
        limit: How many; all of them if None or if there are fewer.

    Returns:
        Texts or conversations.

    Raises:
        ValueError: If there is no such file, column or split, no prompt, or one that is neither of the three.
    """
    rows = _read_rows(source, split)
    if len(rows) == 0:
        raise ValueError(f"'{source}' is empty; give a file with at least one prompt.")
    if column not in rows.column_names:
        raise ValueError(
            f"'{source}' has no column '{column}', only {', '.join(rows.column_names)}; use --prompt_column."
        )
    values = rows[column][: limit or len(rows)]
    return [_as_prompt(value, f"Prompt {i} of '{source}'") for i, value in enumerate(values)]


def render(prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], bool]:
    """Prompts as the text that the model continues.

    Returns:
        The texts, and whether the tokenizer shall add its special tokens to them: not after a chat template, which has
        written them already.

    Raises:
        ValueError: If texts and conversations are mixed, or the tokenizer has no chat template for conversations.
    """
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    conversations = [prompt for prompt in prompts if not isinstance(prompt, str)]
    if not conversations:
        return texts, True
    if texts:
        raise ValueError(
            f"{len(texts)} of {len(prompts)} prompts are texts and the others conversations; use one kind."
        )
    if tokenizer.chat_template is None:
        raise ValueError("The prompts are conversations, but the tokenizer has no chat template; give text prompts.")
    return [render_conversation(messages, tokenizer, {}) for messages in conversations], False


def _read_rows(source: str, split: str) -> Dataset:
    path = Path(source)
    _check_exists(source)
    try:
        if path.is_dir():
            data = load_from_disk(source)
        elif path.suffix in (".jsonl", ".json"):
            return Dataset.from_list(_read_json(path))
        elif path.suffix == ".txt":
            return Dataset.from_list(
                [{"prompt": line} for line in path.read_text("utf-8").splitlines() if line.strip()]
            )
        elif path.suffix in (".parquet", ".csv"):
            return load_dataset(path.suffix[1:], data_files=source, split="train")
        else:
            data = load_dataset(source)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise ValueError(f"'{source}' cannot be read as a data set: {_first_line(error)}") from error
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ValueError(f"'{source}' has no split '{split}', only {', '.join(data)}; use --split.")
        data = data[split]
    return data


def _read_json(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON array of objects, or of one object a line."""
    text = path.read_text("utf-8").strip()
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every row must be a JSON object")
    return rows


def _as_prompt(value: Any, what: str) -> Prompt:
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, list) and value and all(isinstance(message, dict) and "role" in message for message in value):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{what} is {value!r:.60}; it must be a text, a dictionary with 'text' or a list of messages.")
    if not value.strip():
        raise ValueError(f"{what} is empty; remove it.")
    return value


def _check_exists(name: str) -> None:
    # A mistyped path would otherwise become a confusing message about the hub.
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in (".jsonl", ".txt")
    if looks_like_path and not Path(name).exists():
        raise ValueError(f"'{name}' does not exist; give a file, a folder or a hub id.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
