# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks of prompts before a run: columns, then every row."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from trl_ext.messages.printable import first_line
from trl_ext.text.prompt_column import PROMPT, find_prompt_column, read_prompt
from trl_ext.text.rows import (
    TEMPLATE_COLUMNS,
    Text,
    check_dataset,
    conversation_fault,
    is_conversation,
    missing_prompt,
    options_fault,
    template_options,
    template_source,
    value_fault,
)
from trl_ext.text.tokens import unknown_token

from .prompts import template_row, tokenize_prompts

_CHUNK = 1000  # rows that are checked at a time


def check_prompts(
    dataset: Any,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    chat_template_kwargs: dict[str, Any] | None = None,
    num_embeddings: int | None = None,
    prompt_column: str = PROMPT,
) -> None:
    """Check a whole dataset of prompts before a run, so that none fails in the middle of it.

    Args:
        dataset: Given by the user.
        name: Name of the dataset in messages, `train_dataset` or `eval_dataset['name']`.
        max_length: Longest prompt allowed, in tokens.
        num_embeddings: Tokens that the model has embeddings for; None to leave them unchecked.
        prompt_column: As in `PPOConfig`.

    Raises:
        TypeError: when it is not a `datasets.Dataset`.
        ValueError: when it is empty, has no column of prompts, or has a prompt that is empty, too long, of another kind
            than the first, or a conversation that cannot be rendered.
    """
    column = check_prompt_column(dataset, name, prompt_column)
    check = RowCheck(name, column, tokenizer, max_length, chat_template_kwargs, num_embeddings)
    rows = dataset.select_columns([c for c in (column, *TEMPLATE_COLUMNS) if c in dataset.column_names])
    starts = range(0, len(rows), _CHUNK)
    for start in tqdm(starts, desc=f"checking {name}", leave=False, disable=None if len(starts) > 5 else True):
        check(rows[start : start + _CHUNK], start)


def check_prompt_column(dataset: Any, name: str, given: str = PROMPT) -> str:
    """Check the columns of a dataset, which needs no model or tokenizer; raise what `check_prompts` raises.

    Returns:
        The column of the prompts.
    """
    check_dataset(dataset, name, f"a column {given!r}")
    return check_columns(dataset.column_names, dataset[0] if len(dataset) else {}, name, given)


def check_columns(columns: Sequence[str], first: Mapping[str, Any], name: str, given: str = PROMPT) -> str:
    """Return the column of the prompts among the columns of a dataset whose first row is `first`.

    Raises:
        ValueError: when there is none, several could be meant, or the prompts have images.
    """
    try:
        column = find_prompt_column(columns, given)
    except ValueError as error:
        raise ValueError(f"`{name}` {error}") from None
    if column is None:
        raise ValueError(
            f"`{name}` has no column {given!r} (it has {', '.join(columns) or 'none'}); {missing_prompt(columns)}."
        )
    images = [image for image in ("image", "images") if image in columns]
    if images and is_conversation(first[column]):
        raise ValueError(
            f"`{name}` has a column {images[0]!r}; PPOTrainer trains on text alone, so remove it, or rename it when it "
            "is for a reward function."
        )
    return column


class RowCheck:
    """Checks rows of one dataset, a part at a time.

    Args:
        name: Name of the dataset in messages.
        column: Column of the prompts.
        tokenizer: Tokenizer of the policy.
        max_length: Longest prompt allowed, in tokens.
        chat_template_kwargs: Extra arguments of the chat template.
        num_embeddings: Tokens that the model has embeddings for; None to leave them unchecked.
    """

    def __init__(
        self,
        name: str,
        column: str,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        chat_template_kwargs: dict[str, Any] | None,
        num_embeddings: int | None,
    ):
        self.name, self.column, self.tokenizer = name, column, tokenizer
        self.max_length, self.num_embeddings = max_length, num_embeddings
        self.chat_template_kwargs = chat_template_kwargs
        self._template = template_source(tokenizer)
        self._conversational: bool | None = None  # as the first row is
        self._warned = False

    def __call__(self, columns: Mapping[str, list], start: int) -> None:
        """Check rows, given as columns; `start` is the number of the first one.

        Raises:
            ValueError: naming the row, its fault and the fix.
        """
        prompts = [self._prompt(value, i) for i, value in enumerate(columns[self.column], start)]
        columns = {PROMPT: prompts} | {name: columns[name] for name in TEMPLATE_COLUMNS if name in columns}
        ids = self._tokenized(columns, start)
        for i, row in enumerate(ids, start):
            fault = _tokens_fault(row, self.max_length) or unknown_token(row, self.tokenizer, self.num_embeddings)
            if fault is not None:
                raise self._fault(i, fault)
        if not self._warned and self._conversational and "tools" in columns:
            self._warned = self._warn_of_unread_tools(columns, start, ids)

    def _fault(self, row: int, fault: str) -> ValueError:
        return ValueError(f"`{self.name}` row {row}: {fault}")

    def _prompt(self, value: Any, i: int) -> Text:
        """Return the prompt in a value, if it is a text or conversation as the first one is."""
        if self._conversational is None:
            self._conversational = is_conversation(value)
            if self._conversational and self.tokenizer.chat_template is None:
                raise ValueError(
                    f"`{self.name}` holds conversations but the tokenizer has no chat template; use an "
                    "instruction-tuned model, give prompts as text, or set `tokenizer.chat_template` in Python."
                )
        try:
            prompt = read_prompt(value, self.column)
        except ValueError as error:
            raise self._fault(i, str(error)) from None
        fault = value_fault(prompt, self._conversational, i)
        if fault is None and self._conversational:
            fault = conversation_fault(prompt, self._template)
        if fault is not None:
            raise self._fault(i, fault)
        return prompt

    def _tokenized(self, columns: Mapping[str, list], start: int) -> list[list[int]]:
        for i in range(len(columns[PROMPT])):
            if self._conversational and (fault := options_fault(template_row(columns, i))):
                raise self._fault(start + i, fault)
        try:
            return tokenize_prompts(columns[PROMPT], self.tokenizer, self.chat_template_kwargs, columns)
        except Exception:
            pass  # a template may raise anything; the loop below finds the row
        for i in range(len(columns[PROMPT])):
            one = {column: [values[i]] for column, values in columns.items()}
            try:
                tokenize_prompts(one[PROMPT], self.tokenizer, self.chat_template_kwargs, one)
            except Exception as error:
                what = "the conversation" if self._conversational else "the text"
                who = "chat template" if self._conversational else "tokenizer"
                raise self._fault(start + i, f"the {who} refuses {what} ({first_line(error)}).") from None
        raise AssertionError("each row alone can be tokenized")

    def _warn_of_unread_tools(self, columns: Mapping[str, list], start: int, ids: list[list[int]]) -> bool:
        """Warn of tools that the chat template leaves out; return whether a row has tools."""
        i = next((i for i, tools in enumerate(columns["tools"]) if template_options({"tools": tools})), None)
        if i is None:
            return False
        without = {column: [values[i]] for column, values in columns.items() if column != "tools"}
        if tokenize_prompts(without[PROMPT], self.tokenizer, self.chat_template_kwargs, without) == [ids[i]]:
            warnings.warn(
                f"`{self.name}` row {start + i} has tools that the chat template does not write, so the policy does "
                "not see them; use a template that writes `tools`, or remove the column.",
                stacklevel=2,
            )
        return True


def _tokens_fault(ids: list[int], max_length: int | None) -> str | None:
    if not ids:
        return "the tokenizer makes no token of the prompt; filter such rows out."
    if max_length is not None and len(ids) > max_length:
        return (
            f"the prompt has {len(ids)} tokens, more than the {max_length} allowed; filter or shorten it, or change "
            "`max_prompt_length` or `max_completion_length`."
        )
    return None
