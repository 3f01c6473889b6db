# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How much completions repeat themselves and each other, in tokens: that needs no words and no language."""

import math
from collections.abc import Sequence


def repetition(ids: Sequence[int], n: int = 3) -> float:
    """Fraction of the n-grams of a completion that occurred in it before; 0 for fewer than n tokens."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_2(completion_ids: Sequence[Sequence[int]], length: int | None = None) -> float:
    """Different bigrams of a set of completions divided by all (Li et al. 2016); NaN if there is none.

    Args:
        completion_ids: N completions.
        length: How many tokens of each count; all by default. More text has fewer new bigrams, so sets of different
            lengths are compared by equally long beginnings.
    """
    grams = [pair for ids in completion_ids for pair in zip(ids[:length], ids[1:length], strict=False)]
    return len(set(grams)) / len(grams) if grams else math.nan
