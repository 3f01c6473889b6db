# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions to copy and change: `trl_ext ppo --reward example_rewards.py:brevity`.

A reward function returns one number for each completion, higher is better, or None where it does not apply. It takes
what it names of `prompts`, `completions`, `completion_ids` and the columns of the data set; `**columns` takes the rest.
"""

from typing import Any

from trl_ext.rewards import completion_text


def enough_words(completions: list[Any], **columns: Any) -> list[float]:
    """Return 0 from 8 words on, and down to -2.5 for a completion without any."""
    words = [len(completion_text(completion).split()) for completion in completions]
    return [2.5 * min(count - 8, 0) / 8 for count in words]


def brevity(completions: list[Any], **columns: Any) -> list[float]:
    """Return minus a hundredth of the number of characters."""
    return [-len(completion_text(completion)) / 100 for completion in completions]


def correct(completions: list[Any], answer: list[str]) -> list[float | None]:
    """Return 1 where the column `answer` of the data set occurs in the completion; None without an answer."""
    texts = map(completion_text, completions)
    return [float(right in text) if right else None for text, right in zip(texts, answer, strict=True)]
