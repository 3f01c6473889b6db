# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Rewards by rule, for any language: length, repetition, keywords, patterns, sentence ends."""

import re
from collections.abc import Collection, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from trl_ext.text.decoding import characters_in_tokens, decode_alone
from trl_ext.text.ngrams import repetition
from trl_ext.text.sentences import TERMINATORS

from .base import Ids, Texts, completion_text
from .representation import constructor_repr

Unit = Literal["tokens", "words", "characters"]
UNITS = ("tokens", "words", "characters")


def _check_unit(unit: str, allowed: Sequence[str] = UNITS) -> None:
    if unit not in allowed:
        raise ValueError(f"unit is {unit!r}: choose one of {', '.join(allowed)}.")


def _pieces(completions: Texts, completion_ids: Ids, unit: Unit, name: str) -> list[Sequence[Any]]:
    """Return each completion as a sequence of token ids, words or characters."""
    if unit == "tokens":
        if completion_ids is None:
            raise ValueError(f"{name} counts tokens and needs `completion_ids`: pass them or choose another unit.")
        return list(completion_ids)
    texts = [completion_text(completion) for completion in completions]
    return [text.split() for text in texts] if unit == "words" else list(texts)


class LengthReward:
    """Reward for a length within a range, falling off linearly outside it.

    With `low` alone, short completions are penalized: `LengthReward(8)` gives 0 from 8 tokens on, -0.5 at 4 and -1 at
    none. A policy can then not avoid other penalties by empty completions.

    Args:
        low: least length of the target range.
        high: greatest length of the range; `None` means no limit.
        unit: "tokens" (of the policy, as sampled), "words" (split at spaces) or "characters".
        inside: reward within the range.
        outside: reward at `ramp` or more below `low` or above `high`.
        ramp: distance from the range over which the reward falls from `inside` to `outside`; by default `low` below
            the range (`outside` at length 0) and `high` above it (`outside` at twice `high`). 0 is a step.
        ignore_ids: token ids that do not count, such as EOS.

    Raises:
        ValueError: an empty range, a negative `ramp`, an unknown `unit`.
    """

    def __init__(
        self,
        low: float = 0,
        high: float | None = None,
        *,
        unit: Unit = "tokens",
        inside: float = 0.0,
        outside: float = -1.0,
        ramp: float | None = None,
        ignore_ids: Collection[int] = (),
    ):
        _check_unit(unit)
        if low < 0 or (high is not None and high < low):
            raise ValueError(f"LengthReward got the range {low} to {high}: it needs 0 <= low <= high.")
        if ramp is not None and ramp < 0:
            raise ValueError(f"LengthReward got ramp={ramp}: it must be 0 or more.")
        self.low, self.high, self.unit, self.ramp = low, high, unit, ramp
        self.inside, self.outside, self.ignore_ids = inside, outside, frozenset(ignore_ids)
        self.__name__ = "length"

    __repr__ = constructor_repr

    def __call__(self, prompts: Texts, completions: Texts, completion_ids: Ids = None, **columns: Any) -> list[float]:
        """Return N rewards between `inside` and `outside`."""
        pieces = _pieces(completions, completion_ids, self.unit, self.__name__)
        if self.unit == "tokens":
            pieces = [[token for token in ids if token not in self.ignore_ids] for ids in pieces]
        return [self._reward(len(piece)) for piece in pieces]

    def _reward(self, length: int) -> float:
        if length < self.low:
            distance, ramp = self.low - length, self.low if self.ramp is None else self.ramp
        elif self.high is not None and length > self.high:
            distance, ramp = length - self.high, self.high if self.ramp is None else self.ramp
        else:
            return self.inside
        fraction = 1.0 if ramp == 0 else min(distance / ramp, 1.0)
        return self.inside + fraction * (self.outside - self.inside)


class RepetitionReward:
    """Penalty for n-grams that occur again: `max_penalty * (1 - distinct n-grams / n-grams)`.

    Eq. C.2 of "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373), which TRL's
    `get_repetition_penalty_reward` computes on tokens; here also on characters, for languages written without spaces
    and policies with coarse tokens, and on words, regardless of case. Completions shorter than `n` get 0.

    Args:
        n: size of the n-grams.
        unit: "tokens", "words" (split at spaces) or "characters" (a larger `n` is wise, 8 for instance).
        max_penalty: limit of the reward for complete repetition, at most 0.

    Raises:
        ValueError: `n` below 1, a positive `max_penalty`, an unknown `unit`.
    """

    def __init__(self, n: int = 3, *, unit: Unit = "tokens", max_penalty: float = -1.0):
        _check_unit(unit)
        if n < 1:
            raise ValueError(f"RepetitionReward got n={n}: it must be 1 or more.")
        if max_penalty > 0:
            raise ValueError(f"RepetitionReward got max_penalty={max_penalty}: a penalty must not be positive.")
        self.n, self.unit, self.max_penalty = n, unit, max_penalty
        self.__name__ = "repetition"

    __repr__ = constructor_repr

    def __call__(self, prompts: Texts, completions: Texts, completion_ids: Ids = None, **columns: Any) -> list[float]:
        """Return N penalties in [max_penalty, 0]."""
        return [self._reward(p) for p in _pieces(completions, completion_ids, self.unit, self.__name__)]

    def _reward(self, pieces: Sequence[Any]) -> float:
        if self.unit != "tokens":
            pieces = [piece.casefold() for piece in pieces]
        return self.max_penalty * repetition(pieces, self.n)


class RegexReward:
    """Reward (or penalty) for completions in which a regular expression is found.

    Args:
        pattern: regular expression, or a compiled one.
        hit: reward for a match.
        miss: reward without a match.
        max_hits: number of matches that count, `hit` for each.
        flags: flags of `re`, such as `re.IGNORECASE`.
        name: name in logs.

    Raises:
        ValueError: the pattern does not compile; `max_hits` below 1.
    """

    def __init__(
        self,
        pattern: str | re.Pattern[str],
        *,
        hit: float = 1.0,
        miss: float = 0.0,
        max_hits: int = 1,
        flags: int = 0,
        name: str = "regex",
    ):
        if max_hits < 1:
            raise ValueError(f"'{name}' got max_hits={max_hits}: it must be 1 or more.")
        try:
            self.pattern = re.compile(pattern, flags)
        except re.error as error:
            raise ValueError(f"'{name}' got the pattern {pattern!r}, which does not compile: {error}.") from error
        self.hit, self.miss, self.max_hits, self.flags = hit, miss, max_hits, flags
        self.__name__ = name

    __repr__ = constructor_repr

    def __call__(self, prompts: Texts, completions: Texts, completion_ids: Ids = None, **columns: Any) -> list[float]:
        """Return N rewards: `miss`, or `hit` times the number of matches that count."""
        return [self._reward(completion_text(completion)) for completion in completions]

    def _reward(self, text: str) -> float:
        # zip stops at max_hits, so that a long text is not searched to its end
        hits = sum(1 for _ in zip(range(self.max_hits), self.pattern.finditer(text), strict=False))
        return hits * self.hit if hits else self.miss


class KeywordReward(RegexReward):
    """Reward (or, with a negative `hit`, penalty) for completions that contain one of the keywords.

    Args:
        keywords: literal texts.
        hit: reward for a keyword.
        miss: reward without a keyword.
        max_hits: number of occurrences that count, `hit` for each.
        whole_words: leave out keywords inside longer words; off for languages without spaces.
        ignore_case: treat upper and lower case alike.
        name: name in logs.

    Raises:
        ValueError: no keyword, or an empty one.
    """

    def __init__(
        self,
        keywords: Collection[str],
        *,
        hit: float = 1.0,
        miss: float = 0.0,
        max_hits: int = 1,
        whole_words: bool = True,
        ignore_case: bool = True,
        name: str = "keyword",
    ):
        keywords = [keywords] if isinstance(keywords, str) else list(keywords)
        if not keywords or not all(keywords):
            raise ValueError(f"'{name}' got the keywords {keywords}: give at least one, and none empty.")
        # the longest first: an alternative that is a prefix of another would otherwise hide it
        pattern = "|".join(re.escape(keyword) for keyword in sorted(keywords, key=len, reverse=True))
        if whole_words:
            pattern = rf"(?<!\w)(?:{pattern})(?!\w)"
        flags = re.IGNORECASE if ignore_case else 0
        self.keywords, self.whole_words, self.ignore_case = keywords, whole_words, ignore_case
        super().__init__(pattern, hit=hit, miss=miss, max_hits=max_hits, flags=flags, name=name)


class SentenceEndReward:
    """A fixed score for completions in which no sentence ends within a window.

    lm-human-preferences gave -1 to summaries without a period in a window of tokens (Ziegler et al. 2019; detail 14 of
    "The N Implementation Details of RLHF with PPO"), in place of the reward; here the score is one more reward.
    Any script's full stop, question or exclamation mark ends a sentence; those of ASCII only where no letter or digit
    follows, unlike in "3.5".

    Args:
        score: reward of a completion without a sentence end in the window; others get 0.
        start: first position of the window.
        end: position behind the window; `None` is the end of the completion.
        unit: "characters" or "tokens".
        tokenizer: decodes the window's tokens; needed for "tokens".
        terminators: further characters that end a sentence, such as a line break.

    Raises:
        ValueError: an empty window, an unknown `unit`, tokens without a tokenizer.
    """

    def __init__(
        self,
        score: float = -1.0,
        *,
        start: int = 0,
        end: int | None = None,
        unit: Literal["tokens", "characters"] = "characters",
        tokenizer: PreTrainedTokenizerBase | None = None,
        terminators: str = "",
    ):
        _check_unit(unit, ("tokens", "characters"))
        if start < 0 or (end is not None and end <= start):
            raise ValueError(f"SentenceEndReward got the window {start} to {end}: it needs 0 <= start < end.")
        if unit == "tokens" and tokenizer is None:
            raise ValueError("SentenceEndReward with unit='tokens' decodes the window: pass `tokenizer`.")
        self.score, self.start, self.end, self.unit, self.tokenizer = score, start, end, unit, tokenizer
        self.pattern = re.compile(rf"[{re.escape(TERMINATORS + terminators)}]|[.!?](?!\w)")
        self.terminators = terminators
        self.__name__ = "sentence_end"

    __repr__ = constructor_repr

    def __call__(self, prompts: Texts, completions: Texts, completion_ids: Ids = None, **columns: Any) -> list[float]:
        """Return N scores, each `score` or 0."""
        if self.unit == "tokens":
            ids = _pieces(completions, completion_ids, "tokens", self.__name__)
            return [0.0 if self._ends_in_tokens(list(row)) else self.score for row in ids]
        texts = [completion_text(completion) for completion in completions]
        return [0.0 if self._ends_in(text, self.start, self.end) else self.score for text in texts]

    def _ends_in(self, text: str, start: int, end: int | None) -> bool:
        found = self.pattern.search(text, start)  # looks past `end`, to see what follows a period at the edge
        return found is not None and (end is None or found.start() < end)

    def _ends_in_tokens(self, ids: list[int]) -> bool:
        assert self.tokenizer is not None
        start = characters_in_tokens(self.tokenizer, ids, self.start)
        end = None if self.end is None else characters_in_tokens(self.tokenizer, ids, self.end)
        return self._ends_in(decode_alone(self.tokenizer, ids), start, end)
