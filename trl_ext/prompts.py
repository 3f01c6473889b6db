# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Prompts: what a dataset must look like, how prompts become tokens, in which order they are drawn."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import apply_chat_template, is_conversational

Prompt = str | list[dict[str, Any]]


def tokenize_prompts(
    prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None = None
) -> list[list[int]]:
    """
    Token ids of each prompt, unpadded, ready to be continued.

    Conversations go through the tokenizer's chat template, with the header of the assistant's turn (or continuing it,
    when the last message is the assistant's). Text is tokenized as it is; an EOS that the tokenizer appends is
    taken off again, since the completion follows.
    """
    if is_conversational({"prompt": prompts[0]}):
        kwargs = chat_template_kwargs or {}
        texts = [apply_chat_template({"prompt": p}, tokenizer, **kwargs)["prompt"] for p in prompts]
        return tokenizer(text=texts, add_special_tokens=False)["input_ids"]
    ids = tokenizer(text=list(prompts))["input_ids"]
    appends_eos = tokenizer(text="a")["input_ids"][-1] == tokenizer.eos_token_id
    return [row[:-1] for row in ids] if appends_eos else ids


def check_prompts(
    dataset: Any,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> None:
    """
    Check a whole dataset of prompts before a run, so that none fails in the middle of it.

    Args:
        dataset: What the user gave.
        name: What to call it in messages, `train_dataset` or `eval_dataset`.
        max_length: Longest prompt allowed, in tokens.

    Raises:
        TypeError: when it is not a `datasets.Dataset`.
        ValueError: when it is empty, has no column "prompt", or has a prompt that is empty, too long, or a conversation
            for which the tokenizer has no chat template.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"`{name}` must be a `datasets.Dataset` with a column 'prompt', got {type(dataset).__name__}; a stream can "
            "be cut into one with `Dataset.from_list(list(stream.take(n)))`."
        )
    if "prompt" not in dataset.column_names:
        raise ValueError(
            f"`{name}` has no column 'prompt' (it has {', '.join(dataset.column_names) or 'none'}); rename the one "
            "that holds the prompts."
        )
    if len(dataset) == 0:
        raise ValueError(f"`{name}` is empty; PPO needs at least one prompt.")
    conversational = is_conversational({"prompt": dataset[0]["prompt"]})
    if conversational and tokenizer.chat_template is None:
        raise ValueError(
            f"`{name}` holds conversations but the tokenizer has no chat template; set `tokenizer.chat_template`, use "
            "an instruction-tuned model, or give prompts as text."
        )
    rows = range(0, len(dataset), 1000)
    for start in tqdm(rows, desc=f"checking {name}", leave=False, disable=None if len(rows) > 5 else True):
        prompts = dataset[start : start + 1000]["prompt"]
        for i, prompt in enumerate(prompts, start):
            if not isinstance(prompt, list if conversational else str):
                raise ValueError(
                    f"`{name}` row {i}: the prompt is {prompt!r:.60}; every prompt must be "
                    f"{'a list of messages' if conversational else 'a text'}, as in row 0."
                )
            if not prompt or (isinstance(prompt, str) and not prompt.strip()):
                raise ValueError(f"`{name}` row {i}: the prompt is empty; filter such rows out.")
        for i, ids in enumerate(tokenize_prompts(prompts, tokenizer, chat_template_kwargs), start):
            if max_length is not None and len(ids) > max_length:
                raise ValueError(
                    f"`{name}` row {i}: the prompt has {len(ids)} tokens, more than the {max_length} allowed; filter "
                    "or shorten it, or change `max_prompt_length` or `max_completion_length`."
                )


PLACEHOLDER = -1  # stands for a row whose rollout has been made already


class RolloutRows(torch.utils.data.Dataset):
    """
    The rows of a dataset, and None for `PLACEHOLDER`.

    Args:
        dataset: The prompts.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any] | None]:
        """The rows of one batch, read at once."""
        real = iter(self.dataset.__getitems__([i for i in indices if i != PLACEHOLDER]) if max(indices) >= 0 else [])
        return [None if i == PLACEHOLDER else next(real) for i in indices]

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return self.__getitems__([index])[0]


class RolloutSampler(Sampler[int]):
    """
    Draws prompts rollout by rollout, and a placeholder for each in every further micro-batch learned from it.

    The Trainer asks its dataloader for a batch before every micro-batch; the placeholders keep its own count of steps,
    epochs and skipped batches true without reading a row again. The order of an epoch depends on the seed and the epoch
    alone, so that a resumed run sees what the uninterrupted one would have. A dataset smaller than a rollout is drawn
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
        """Say which epoch the next iteration is."""
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
    """
    Tells the sampler which epoch begins.

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
