# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Prompts: checks of a dataset, prompts as tokens, and the order in which prompts are drawn."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TrainerCallback

from trl_ext.messages.printable import first_line
from trl_ext.text.rows import (
    TEMPLATE_COLUMNS,
    Text,
    check_dataset,
    conversation_fault,
    is_conversation,
    missing_prompt,
    options_fault,
    render,
    template_options,
    template_source,
    value_fault,
)
from trl_ext.text.tokens import appended_tokens, encode, unknown_token

_CHUNK = 1000  # rows that are checked at a time


def tokenize_prompts(
    prompts: Sequence[Text],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: dict[str, Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> list[list[int]]:
    """Return the token ids of each prompt, unpadded, ready to be continued.

    Conversations go through the tokenizer's chat template, with the header of the assistant's turn (or continuing it,
    when the last message is the assistant's). Text is tokenized as it is; an EOS or [SEP] that the tokenizer appends is
    taken off again, since the completion follows.

    Args:
        prompts: N texts or conversations.
        tokenizer: Tokenizer of the policy.
        chat_template_kwargs: Extra arguments of the chat template.
        columns: Further columns of the dataset, N values each. A conversation is rendered with its row's "tools" and
            "chat_template_kwargs", as TRL's trainers do.
    """
    if not is_conversation(prompts[0]):
        appended = appended_tokens(tokenizer)
        return [row[: len(row) - appended] for row in encode(prompts, tokenizer)]  # type: ignore[arg-type]
    texts = []
    for i, prompt in enumerate(prompts):
        options = {**(chat_template_kwargs or {}), **template_options(_row(columns or {}, i))}
        texts.append(render(prompt, tokenizer, options))  # type: ignore[arg-type]
    return encode(texts, tokenizer, rendered=True)


def check_prompts(
    dataset: Any,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    chat_template_kwargs: dict[str, Any] | None = None,
    num_embeddings: int | None = None,
) -> None:
    """Check a whole dataset of prompts before a run, so that none fails in the middle of it.

    Args:
        dataset: Given by the user.
        name: Name of the dataset in messages, `train_dataset` or `eval_dataset['name']`.
        max_length: Longest prompt allowed, in tokens.
        num_embeddings: Tokens that the model has embeddings for; None to leave them unchecked.

    Raises:
        TypeError: when it is not a `datasets.Dataset`.
        ValueError: when it is empty, has no column "prompt", or has a prompt that is empty, too long, of another kind
            than the first, or a conversation that cannot be rendered.
    """
    check_prompt_column(dataset, name)
    conversational = is_conversation(dataset[0]["prompt"])
    if conversational and tokenizer.chat_template is None:
        raise ValueError(
            f"`{name}` holds conversations but the tokenizer has no chat template; set `tokenizer.chat_template`, use "
            "an instruction-tuned model, or give prompts as text."
        )
    template = template_source(tokenizer)
    kept = [column for column in ("prompt", *TEMPLATE_COLUMNS) if column in dataset.column_names]
    rows = dataset.select_columns(kept)
    warned = False
    starts = range(0, len(rows), _CHUNK)
    for start in tqdm(starts, desc=f"checking {name}", leave=False, disable=None if len(starts) > 5 else True):
        columns = rows[start : start + _CHUNK]
        for i, prompt in enumerate(columns["prompt"], start):
            fault = value_fault(prompt, conversational, i)
            if fault is None and conversational:
                fault = conversation_fault(prompt, template) or options_fault(_row(columns, i - start))
            if fault is not None:
                raise ValueError(f"`{name}` row {i}: {fault}")
        ids = _tokenized(columns, start, name, tokenizer, chat_template_kwargs)
        for i, row in enumerate(ids, start):
            fault = _tokens_fault(row, max_length) or unknown_token(row, tokenizer, num_embeddings)
            if fault is not None:
                raise ValueError(f"`{name}` row {i}: {fault}")
        if not warned and conversational and "tools" in columns:
            warned = _warn_of_unread_tools(columns, start, name, ids, tokenizer, chat_template_kwargs)


def check_prompt_column(dataset: Any, name: str) -> None:
    """Check the columns of a dataset, which needs no model or tokenizer; raise what `check_prompts` raises."""
    check_dataset(dataset, name, "a column 'prompt'")
    if "prompt" not in dataset.column_names:
        columns = dataset.column_names
        raise ValueError(
            f"`{name}` has no column 'prompt' (it has {', '.join(columns) or 'none'}); {missing_prompt(columns)}."
        )
    images = [column for column in ("image", "images") if column in dataset.column_names]
    if images and is_conversation(dataset[0]["prompt"]):
        raise ValueError(
            f"`{name}` has a column {images[0]!r}; PPOTrainer trains on text alone, so remove it, or rename it when it "
            "is for a reward function."
        )


def _row(columns: Mapping[str, Sequence[Any]], i: int) -> dict[str, Any]:
    """Return the values of row `i` that its chat template reads."""
    return {name: columns[name][i] for name in TEMPLATE_COLUMNS if name in columns}


def _tokens_fault(ids: list[int], max_length: int | None) -> str | None:
    if not ids:
        return "the tokenizer makes no token of the prompt; filter such rows out."
    if max_length is not None and len(ids) > max_length:
        return (
            f"the prompt has {len(ids)} tokens, more than the {max_length} allowed; filter or shorten it, or change "
            "`max_prompt_length` or `max_completion_length`."
        )
    return None


def _tokenized(
    columns: dict[str, list],
    start: int,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: dict[str, Any] | None,
) -> list[list[int]]:
    try:
        return tokenize_prompts(columns["prompt"], tokenizer, chat_template_kwargs, columns)
    except Exception:
        pass  # a template may raise anything; the loop below finds the row
    for i in range(len(columns["prompt"])):
        one = {column: [values[i]] for column, values in columns.items()}
        try:
            tokenize_prompts(one["prompt"], tokenizer, chat_template_kwargs, one)
        except Exception as error:
            what = "the text" if isinstance(one["prompt"][0], str) else "the conversation"
            who = "tokenizer" if isinstance(one["prompt"][0], str) else "chat template"
            raise ValueError(f"`{name}` row {start + i}: the {who} refuses {what} ({first_line(error)}).") from None
    raise AssertionError("each row alone can be tokenized")


def _warn_of_unread_tools(
    columns: dict[str, list],
    start: int,
    name: str,
    ids: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: dict[str, Any] | None,
) -> bool:
    """Warn of tools that the chat template leaves out; return whether a row has tools."""
    i = next((i for i, tools in enumerate(columns["tools"]) if template_options({"tools": tools})), None)
    if i is None:
        return False
    without = {column: [values[i]] for column, values in columns.items() if column != "tools"}
    if tokenize_prompts(without["prompt"], tokenizer, chat_template_kwargs, without) == [ids[i]]:
        warnings.warn(
            f"`{name}` row {start + i} has tools that the chat template does not write, so the policy does not "
            "see them; use a template that writes `tools`, or remove the column.",
            stacklevel=2,
        )
    return True


PLACEHOLDER = -1  # index in place of a row whose rollout has been made already


class RolloutRows(torch.utils.data.Dataset):
    """The rows of a dataset, and None for `PLACEHOLDER`.

    Args:
        dataset: The prompts.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any] | None]:
        """Return the rows of one batch, read at once."""
        real = iter(self.dataset.__getitems__([i for i in indices if i != PLACEHOLDER]) if max(indices) >= 0 else [])
        return [None if i == PLACEHOLDER else next(real) for i in indices]

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return self.__getitems__([index])[0]


class RolloutSampler(Sampler[int]):
    """Draws prompts rollout by rollout, and a placeholder for each in every further micro-batch learned from it.

    The Trainer asks its dataloader for a batch before every micro-batch; the placeholders keep its own count of steps,
    epochs and skipped batches true without reading a row again. The order of an epoch depends on the seed and the epoch
    alone, so that a resumed run draws the prompts of an uninterrupted one. A dataset smaller than a rollout is drawn
    from several times.

    Args:
        num_prompts: Size of the dataset.
        rollout_size: Prompts in a rollout over all processes.
        repeats: Micro-batches per rollout on each process.
        shuffle: Draw a new order in every epoch.
        seed: Seed of the order.
    """

    def __init__(self, num_prompts: int, rollout_size: int, repeats: int, *, shuffle: bool, seed: int):
        self.num_prompts = num_prompts
        self.rollout_size = rollout_size
        self.repeats = repeats
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.num_rollouts = max(1, num_prompts // rollout_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rollouts * self.repeats * self.rollout_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = []
        while len(order) < self.num_rollouts * self.rollout_size:
            n = self.num_prompts
            order += torch.randperm(n, generator=generator).tolist() if self.shuffle else list(range(n))
        for start in range(0, self.num_rollouts * self.rollout_size, self.rollout_size):
            yield from order[start : start + self.rollout_size]
            yield from [PLACEHOLDER] * (self.rollout_size * (self.repeats - 1))


class EpochSeed(TrainerCallback):
    """Tells the sampler which epoch begins.

    accelerate's dataloaders forward the epoch to samplers of their own, not to one inside a sharded batch sampler.

    Args:
        sampler: Returns the sampler in use, or None while there is none.
    """

    def __init__(self, sampler: Callable[[], RolloutSampler | None]):
        self._sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Pass the epoch on."""
        sampler = self._sampler()
        if sampler is not None:
            sampler.set_epoch(int(state.epoch or 0))
