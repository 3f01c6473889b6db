# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Repetition within a text and between texts, by n-grams of words, characters or token ids."""

import math
from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def ngrams(tokens: Sequence[T], n: int) -> list[tuple[T, ...]]:
    """Return all runs of `n` neighbouring tokens, in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repetition(tokens: Sequence[Hashable], n: int = 3) -> float:
    """Return the fraction of a text's n-grams that occurred in it before; 0 for fewer than `n` tokens."""
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(corpus: Sequence[Sequence[Hashable]], n: int) -> float:
    """Return different n-grams divided by all n-grams of a set of texts (Li et al. 2016); NaN if there is none.

    N-grams never cross from one text into the next. The share of new n-grams falls with the amount of text: compare
    texts of equal length.
    """
    grams = [gram for tokens in corpus for gram in ngrams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else math.nan
