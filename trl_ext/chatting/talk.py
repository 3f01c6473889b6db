# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A talk with one or several models: each answers, and each answer is scored."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from trl_ext.rewards import RewardRunner
from trl_ext.text.decoding import as_completions

from .speaker import Answer, Speaker

__all__ = ["Rewarded", "Talk", "rewarded"]


def _silent(number: int, text: str) -> None:
    pass


class Rewarded(NamedTuple):
    """An answer with its rewards.

    Attributes:
        title: Name of the model.
        answer: The answer.
        rewards: Each reward by name; None where the function does not apply or failed.
        total: Their weighted sum; None where there is none.
    """

    title: str
    answer: Answer
    rewards: dict[str, float | None]
    total: float | None


class Talk:
    """A talk with models that all hear the same.

    Args:
        speakers: The models.
        rewards: Scores the answers; None for no scores.
        seed: Seed of the first answer; the next has the next seed. All models answer with the same seed.
    """

    def __init__(self, speakers: Sequence[Speaker], rewards: RewardRunner | None = None, *, seed: int = 0):
        self.speakers, self.rewards, self.seed = list(speakers), rewards, seed

    @property
    def conversational(self) -> bool:
        """Whether the models answer messages, and do not continue texts."""
        return self.speakers[0].conversational

    def answers(
        self, said: str, *, on_text: Callable[[int, str], None] = _silent, stop: Callable[[], bool] = lambda: False
    ) -> list[Answer]:
        """Let each model answer a text and remember it; an answer that was stopped is remembered as far as it went.

        Args:
            said: The text.
            on_text: Called with the number of the speaker and the whole text of its answer so far.
            stop: Asked after every token.

        Raises:
            ValueError: when the text does not fit into a model's context; no model then remembers it.
        """
        made: list[Answer] = []
        for number, speaker in enumerate(self.speakers):
            made.append(speaker.answer(said, seed=self.seed, on_text=partial(on_text, number), stop=stop))
        self.seed += 1
        for speaker, answer in zip(self.speakers, made, strict=True):
            speaker.remember(answer)
        return made

    def score(self, answers: Sequence[Answer]) -> tuple[list[Rewarded], list[str]]:
        """Return the answers with their rewards, and what the reward functions warned of.

        Raises:
            ValueError, TypeError, RuntimeError: as `RewardRunner` raises.
        """
        titles = [speaker.title for speaker in self.speakers]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            scored = [rewarded(title, answer, self.rewards) for title, answer in zip(titles, answers, strict=True)]
        return scored, list(dict.fromkeys(str(warning.message) for warning in caught))

    def unscored(self, answers: Sequence[Answer]) -> list[Rewarded]:
        """Return the answers without rewards."""
        return [rewarded(speaker.title, answer, None) for speaker, answer in zip(self.speakers, answers, strict=True)]

    def reset(self) -> None:
        """Let every model forget the conversation."""
        for speaker in self.speakers:
            speaker.reset()

    def undo(self) -> str | None:
        """Let every model forget the last message and its answer; return the message, or None where there is none."""
        said = [speaker.undo() for speaker in self.speakers]
        return said[0]


def rewarded(title: str, answer: Answer, rewards: RewardRunner | None) -> Rewarded:
    """Score an answer; no state of a reward function changes."""
    if rewards is None:
        return Rewarded(title, answer, {}, None)
    completions = as_completions([answer.prompt], [answer.text])
    scores = rewards([answer.prompt], completions, [answer.ids], {}, update_state=False)
    values = [None if math.isnan(value) else value for value in scores.per_function[0].tolist()]
    total = float(scores.total[0]) if bool(scores.valid[0]) else None
    return Rewarded(title, answer, dict(zip(rewards.names, values, strict=True)), total)
