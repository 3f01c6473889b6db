# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A score before and after training by category of the prompts: which categories lost, and which may be noise.

The two scores of a prompt are a pair, and only their difference counts. The interval of a category's mean difference
comes from the means of random subsets of its differences, each of which is in a subset with probability 1/2: where
differences are symmetric about their centre, the centre is equally likely to lie in each of the gaps between the subset
means (Hartigan 1969, "Using subsample values as typical values", JASA 64). That is exact for any number of prompts, and
an interval without 0 is the same as a sign-flip test that rejects "no change".

With C categories each interval has the confidence 1 - 5% / C (Bonferroni): where nothing changed, the chance that any
of them leaves 0 out is at most 5%. A category with too few prompts for that has an interval without ends.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trl_ext.messages.printable import one_line

__all__ = ["CategoryChange", "category_changes", "losses_text"]

_SUBSETS = 20_000
_BLOCK = 4_000_000  # differences drawn at a time
_MOST_NAMED = 5


class CategoryChange(NamedTuple):
    """The mean score of one category before and after.

    Attributes:
        category: Its name.
        prompts: Prompts with both scores.
        before: Mean score before, over them.
        after: Mean score after.
        low: Lower end of the interval of the mean of `after - before`; -inf with too few prompts.
        high: Upper end; inf with too few prompts.
        lost: Whether the whole interval is on the worse side of 0.
    """

    category: str
    prompts: int
    before: float
    after: float
    low: float
    high: float
    lost: bool


def category_changes(
    categories: Sequence[Any],
    before: Sequence[float | None],
    after: Sequence[float | None],
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[CategoryChange]:
    """Compare the scores of N prompts before and after, by category.

    Args:
        categories: Category of each prompt, N values that are shown as text.
        before: Score of each prompt before; None or NaN where there is none, and then the prompt does not count.
        after: Score of the same prompts after; with several completions of a prompt, the mean of their scores.
        higher_is_better: Whether a lower score is a loss.
        confidence: Probability that all intervals together hold.
        seed: Of the random subsets.

    Returns:
        One entry for each category with a prompt that has both scores, the largest loss first.

    Raises:
        ValueError: when the three lists have different lengths.
    """
    if not len(categories) == len(before) == len(after):
        raise ValueError(
            f"There are {len(categories)} categories, {len(before)} scores before and {len(after)} after; give one of "
            "each for every prompt."
        )
    old, new = (np.array([math.nan if v is None else v for v in values], dtype=float) for values in (before, after))
    names, known = np.array([str(category) for category in categories]), np.isfinite(old) & np.isfinite(new)
    members = {str(name): known & (names == name) for name in dict.fromkeys(names[known].tolist())}
    tail = (1 - confidence) / 2 / max(len(members), 1)
    found = []
    for name, rows in members.items():
        low, high = _interval(new[rows] - old[rows], tail, seed)
        lost = high < 0 if higher_is_better else low > 0
        means = float(old[rows].mean()), float(new[rows].mean())
        found.append(CategoryChange(name, int(rows.sum()), *means, low, high, lost))
    sign = 1 if higher_is_better else -1
    return sorted(found, key=lambda change: sign * (change.after - change.before))


def losses_text(changes: Sequence[CategoryChange], score: str) -> str:
    """Return in a sentence which categories lost, empty where there are no categories.

    Args:
        changes: As `category_changes` returns them.
        score: Name of the score within a sentence, such as "gold reward".
    """
    if not changes:
        return ""
    lost = [change for change in changes if change.lost]
    of_all = f"{len(changes)} categories" if len(changes) > 1 else "the only category"
    if not lost:
        return f"By category: the {score} got worse measurably in none of {of_all}."
    named = [
        f"`{one_line(change.category, 40)}` from {change.before:.3g} to {change.after:.3g} (95% interval of the change "
        f"{change.low:.2g} to {change.high:.2g})"
        for change in lost[:_MOST_NAMED]
    ]
    more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
    return f"By category: the {score} got worse in {len(lost)} of {of_all}: {', '.join(named)}{more}."


def _interval(differences: np.ndarray, tail: float, seed: int) -> tuple[float, float]:
    """Return the subset means between which all but `tail` on either side lie; an empty subset is beyond them all."""
    generator, count = np.random.default_rng(seed), len(differences)
    sums, sizes = np.empty(_SUBSETS), np.empty(_SUBSETS)
    rows = max(1, _BLOCK // count)
    for start in range(0, _SUBSETS, rows):
        part = slice(start, min(start + rows, _SUBSETS))
        chosen = (generator.random((part.stop - start, count), dtype=np.float32) < 0.5).astype(float)
        sums[part], sizes[part] = chosen @ differences, chosen.sum(1)
    sums[np.abs(sums) < 1e-9 * np.abs(differences).max()] = 0.0  # differences that cancel, but for rounding
    means, is_empty = sums / np.maximum(sizes, 1), sizes == 0
    low = np.quantile(np.where(is_empty, -math.inf, means), tail, method="lower")
    high = np.quantile(np.where(is_empty, math.inf, means), 1 - tail, method="higher")
    return float(low), float(high)
