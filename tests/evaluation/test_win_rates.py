# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Win rates and their intervals."""

import math

import numpy as np
import pytest

from trl_ext.evaluation.intervals import wilson
from trl_ext.evaluation.win_rates import bootstrap_win_rate, by_category, count, win_rate


def test_wilson_intervals_of_the_literature():
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    for successes, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson(successes, total)
        assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert wilson(20, 20).high == 1.0 and wilson(20, 20).low == pytest.approx(1 - 0.1611, abs=5e-5)
    wider = wilson(81, 263, confidence=0.99)
    assert wider.low < 0.2553 and wider.high > 0.3662
    assert math.isnan(wilson(0, 0).estimate)


def test_a_tie_is_half_a_win():
    assert win_rate(6, 2, 2).estimate == 0.7 and win_rate(0, 0, 5).estimate == 0.5
    assert win_rate(6, 2, 2) == wilson(7, 10)


def test_the_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered, narrower = [0, 0], []
    for _ in range(200):
        outcomes = generator.choice([1, -1, 0], size=60, p=[0.5, 0.2, 0.3]).tolist()  # a win rate of 0.65
        intervals = [count(outcomes).rate, bootstrap_win_rate(outcomes, num_resamples=200)]
        for i, interval in enumerate(intervals):
            covered[i] += interval.low <= 0.65 <= interval.high
        narrower.append((intervals[1].high - intervals[1].low) / (intervals[0].high - intervals[0].low))
    assert covered[0] >= 186 and covered[1] >= 178
    assert np.mean(narrower) < 0.95


def test_counts_and_categories():
    outcomes = [1, 0, None, -1, 1]
    total = count(outcomes)
    assert (total.wins, total.losses, total.ties, total.left_out) == (2, 1, 1, 1)
    assert total.as_dict()["win_rate"]["estimate"] == 0.625
    table = by_category(outcomes, ["b", "a", "b", "a", "b"])
    assert list(table) == ["b", "a"] and table["b"].rate.estimate == 1.0 and table["b"].left_out == 1
    assert (table["a"].ties, table["a"].losses) == (1, 1)
    assert math.isnan(bootstrap_win_rate([None]).estimate)
    assert bootstrap_win_rate([1] * 6 + [None]) == win_rate(6, 0) and bootstrap_win_rate([-1] * 6) == win_rate(0, 6)
    assert bootstrap_win_rate([0] * 6).low == 0.5, "answers that are all equal"
    with pytest.raises(ValueError, match="5 comparisons and 1 categories"):
        by_category(outcomes, ["a"])
    with pytest.raises(ValueError, match="-1 wins"):
        win_rate(-1, 2)
