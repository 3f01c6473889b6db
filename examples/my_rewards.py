# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions to start from, for `--reward FILE.py:function` and for `PPOTrainer(reward_funcs=[...])`.

    trl_ext ppo --model_name_or_path MODEL --dataset_name prompts.jsonl --reward my_rewards.py:brevity
    trl_ext ppo ... --reward my_rewards.py:brevity --reward my_rewards.py:mentions --reward_weights 1 0.5

A reward function gets lists of the same length and returns a number for each completion, or `None` where it does not
apply. Completions are texts; where the prompts are conversations, they are lists of messages, and `completion_text`
gives the text of either. Every other column of the data set is a keyword argument.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from trl_ext.rewards import completion_text

MOST_WORDS = 12


def brevity(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """Return 0 up to 12 words and less and less beyond; -1 for no word at all, which would be the shortest answer."""
    counts = [len(completion_text(completion).split()) for completion in completions]
    return [min(0.0, 1 - count / MOST_WORDS) if count else -1.0 for count in counts]


def mentions(
    prompts: Sequence[Any], completions: Sequence[Any], keyword: Sequence[str | None], **columns: Any
) -> list[float | None]:
    """Return 1 where a completion has the word of the column `keyword`, 0 where not, None for rows without a word."""
    texts = [completion_text(completion).lower() for completion in completions]
    return [None if word is None else float(word.lower() in text) for word, text in zip(keyword, texts, strict=True)]


async def checked_elsewhere(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """Return what a slow service says of each completion, all of them asked at the same time.

    `async` functions of one run are awaited together, so that two slow services take the time of one. For a service
    that answers over HTTP, `--reward http://...` needs no function.
    """
    return list(await asyncio.gather(*(ask(completion_text(completion)) for completion in completions)))


async def ask(text: str) -> float:
    """Stand in for a request to a service: 1 for a text that ends like a sentence, else 0."""
    await asyncio.sleep(0.01)
    return float(text.rstrip().endswith((".", "!", "?")))


class Blocklist:
    """A parameterized reward: -1 for a completion with a blocked word, else 0. `my_rewards.py:Blocklist` makes one."""

    def __init__(self, words: Sequence[str] = ("stupid", "idiot")):
        self.words = [word.lower() for word in words]
        self.__name__ = "blocklist"  # its name in logs

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return -1 or 0 for each completion."""
        texts = [completion_text(completion).lower() for completion in completions]
        return [-float(any(word in text for word in self.words)) for text in texts]
