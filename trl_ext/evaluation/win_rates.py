# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Win rates of a model against a baseline, from the outcomes of a judge; a tie counts as half a win."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .intervals import Interval, bootstrap_fraction, bootstrap_mean, wilson
from .judges import Outcome


@dataclass(frozen=True)
class Comparisons:
    """Counts of outcomes.

    Attributes:
        wins, losses, ties: Of the comparisons that were judged.
        left_out: Comparisons without a verdict.
    """

    wins: int
    losses: int
    ties: int
    left_out: int = 0

    @property
    def rate(self) -> Interval:
        """The win rate with its 95% confidence interval."""
        return win_rate(self.wins, self.losses, self.ties)

    def as_dict(self) -> dict[str, Any]:
        """Return the win rate and the counts, for JSON."""
        return {"win_rate": self.rate.as_dict(), **asdict(self)}


def win_rate(wins: int, losses: int, ties: int = 0, *, confidence: float = 0.95) -> Interval:
    """Return (wins + ties / 2) / comparisons, with Wilson's interval.

    A tie varies less than a win and a loss, so with ties Wilson's interval is a little wider than it need be;
    the interval of `bootstrap_win_rate` is not.

    Raises:
        ValueError: negative counts, a confidence outside (0, 1).
    """
    if min(wins, losses, ties) < 0:
        raise ValueError(f"Got {wins} wins, {losses} losses and {ties} ties; counts are not negative.")
    return wilson(wins + ties / 2, wins + losses + ties, confidence=confidence)


def bootstrap_win_rate(outcomes: Sequence[Outcome], **options: Any) -> Interval:
    """Return the win rate with a bootstrap interval over prompts; comparisons that were not judged do not count.

    Where all were won, or all lost, resamples never differ, and the interval is Wilson's.

    Args:
        outcomes: As a judge returns them.
        options: Those of `bootstrap`.
    """
    scores = [(outcome + 1) / 2 for outcome in outcomes if outcome is not None]
    if {*scores} in ({0.0}, {1.0}):
        return bootstrap_fraction([score == 1.0 for score in scores], **options)
    return bootstrap_mean(scores, **options) if scores else Interval(math.nan, math.nan, math.nan)


def count(outcomes: Sequence[Outcome]) -> Comparisons:
    """Count the outcomes that a judge returned."""
    return Comparisons(*(outcomes.count(outcome) for outcome in (1, -1, 0, None)))


def by_category(outcomes: Sequence[Outcome], categories: Sequence[Any]) -> dict[str, Comparisons]:
    """Count the outcomes of each category, in the order in which the categories first come up.

    Raises:
        ValueError: not one category for each outcome.
    """
    if len(outcomes) != len(categories):
        raise ValueError(f"There are {len(outcomes)} comparisons and {len(categories)} categories; give one each.")
    names = [str(category) for category in categories]
    return {
        name: count([outcome for outcome, own in zip(outcomes, names, strict=True) if own == name])
        for name in dict.fromkeys(names)
    }
