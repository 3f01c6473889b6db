# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Prompts: those of a dataset's rows, as tokens, and the order in which they are drawn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback

from trl_ext.text.prompt_column import PROMPT, find_prompt_column, read_prompt
from trl_ext.text.rows import (
    TEMPLATE_COLUMNS,
    Text,
    is_conversation,
    render,
    template_options,
)
from trl_ext.text.tokens import appended_tokens, encode


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
        options = {**(chat_template_kwargs or {}), **template_options(template_row(columns or {}, i))}
        texts.append(render(prompt, tokenizer, options))  # type: ignore[arg-type]
    return encode(texts, tokenizer, rendered=True)


def split_columns(columns: Mapping[str, Sequence[Any]], given: str = PROMPT) -> tuple[list[Text], dict[str, list[Any]]]:
    """Return the prompts of N rows, and the columns for reward functions.

    The column of the prompts is among the columns under its own name, where that is not "prompt": whole conversations
    hold the answer that a reward function may compare with.

    Args:
        columns: The columns, N values each, which have been checked.
        given: As `prompt_column` of `PPOConfig`.
    """
    column = find_prompt_column(columns, given)
    assert column is not None
    prompts = [read_prompt(value, column) for value in columns[column]]
    return prompts, {name: list(values) for name, values in columns.items() if name != PROMPT}


def has_conversations(dataset: Any, given: str = PROMPT) -> bool:
    """Return whether the prompts of a dataset that has been checked are conversations."""
    first = dataset.first if hasattr(dataset, "first") else dataset[0]
    return is_conversation(split_columns({name: [value] for name, value in first.items()}, given)[0][0])


def template_row(columns: Mapping[str, Sequence[Any]], i: int) -> dict[str, Any]:
    """Return the values of row `i` that its chat template reads."""
    return {name: columns[name][i] for name in TEMPLATE_COLUMNS if name in columns}


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
    alone, so that a resumed run draws the prompts of an uninterrupted one. Prompts that do not fill a rollout at the
    end of an epoch are left out of it; without shuffling the next epoch begins with them. A dataset smaller than a
    rollout is drawn from several times.

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

    def rollout(self, number: int) -> list[int]:
        """Return the prompts of a rollout over all processes, counted from the first one of the run on."""
        epoch, place = divmod(number, self.num_rollouts)
        return self._order(epoch)[place * self.rollout_size : (place + 1) * self.rollout_size]

    def _order(self, epoch: int) -> list[int]:
        """Return the prompts of an epoch, of whole rollouts."""
        count = self.num_rollouts * self.rollout_size
        if not self.shuffle:
            return [place % self.num_prompts for place in range(epoch * count, (epoch + 1) * count)]
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order: list[int] = []
        while len(order) < count:
            order += torch.randperm(self.num_prompts, generator=generator).tolist()
        return order[:count]

    def __iter__(self) -> Iterator[int]:
        order = self._order(self.epoch)
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
