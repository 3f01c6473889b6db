# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Intervals against their nominal coverage and known widths."""

import math

import numpy as np
import pytest

from trl_ext.evaluation.intervals import bootstrap, bootstrap_fraction, bootstrap_mean, wilson
from trl_ext.evaluation.measures import compare, diversity_measures, fraction_measure, mean_measure
from trl_ext.text.ngrams import distinct_n


def test_interval_covers_the_true_mean_about_95_times_in_100():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = bootstrap_mean(generator.normal(3.0, 2.0, 60), num_resamples=300)
        covered += interval.low <= 3.0 <= interval.high
    assert 180 <= covered <= 198


def test_width_of_a_fraction():
    # 100 of 400: the standard error is sqrt(0.25 * 0.75 / 400) = 0.02165, and 95% is 1.96 of them on either side.
    interval = bootstrap_mean([1.0] * 100 + [0.0] * 300, num_resamples=4000)
    assert interval.estimate == 0.25
    assert interval.low == pytest.approx(0.25 - 1.96 * 0.02165, abs=0.004)
    assert interval.high == pytest.approx(0.25 + 1.96 * 0.02165, abs=0.004)
    wider = bootstrap_mean([1.0] * 100 + [0.0] * 300, confidence=0.99)
    assert wider.high - wider.low > 1.2 * (interval.high - interval.low)


def against(values, baseline):
    """Intervals of two means, their difference and their ratio."""
    return compare(mean_measure(list(values)), mean_measure(list(baseline)), num_resamples=500, seed=0)


def test_pairs_cancel_what_the_prompts_have_in_common():
    baseline = np.random.default_rng(0).normal(0.0, 100.0, 50)
    difference = against(baseline + 1, baseline)["difference"]
    assert (difference.estimate, difference.low, difference.high) == pytest.approx((1.0, 1.0, 1.0))
    ratio = against(2 * baseline, baseline)["ratio"]
    assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_ratio_is_of_the_means_not_the_mean_of_ratios():
    assert against([1.0, 9.0], [1.0, 1.0])["ratio"].estimate == 5.0
    assert against([1.0, 1.0], [1.0, 9.0])["ratio"].estimate == pytest.approx(0.2)


def test_same_seed_same_interval():
    values = list(range(30))
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_undefined_is_nan_and_null_in_json():
    interval = against([1.0, 2.0], [0.0, 0.0])["ratio"]
    assert math.isnan(interval.estimate) and math.isnan(interval.low)
    assert interval.as_dict() == {"estimate": None, "low": None, "high": None}


def test_bad_input():
    with pytest.raises(ValueError, match="no sample"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="`confidence` is 95"):
        bootstrap(lambda i: 0.0, 3, confidence=95)
    with pytest.raises(ValueError, match="2 samples of the model and 1 of the baseline"):
        compare(mean_measure([1, 2]), mean_measure([1]), num_resamples=10, seed=0)


@pytest.mark.parametrize("n", [1, 2])
def test_distinct_n_interval_is_as_wide_as_distinct_n_varies(n):
    # Resampling whole completions with replacement would make the interval of distinct-2 2.5 times too wide.
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(1, 501)
    weights /= weights.sum()
    values, widths = [], []
    for _ in range(60):
        texts = [" ".join(map(str, generator.choice(500, generator.integers(1, 12), p=weights))) for _ in range(64)]
        measure = diversity_measures(texts)[f"distinct_{n}"]
        interval = bootstrap(measure.value, 64, num_resamples=200)
        assert interval.estimate == pytest.approx(distinct_n([text.split() for text in texts], n))
        values.append(interval.estimate)
        widths.append(interval.high - interval.low)
    assert np.mean(widths) / (2 * 1.96 * np.std(values)) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(("texts", "expected"), [(["a b a b", "a", ""], 2 / 3), (["a", ""], None)])
def test_distinct_2_of_a_single_text_with_bigrams(texts, expected):
    measure = diversity_measures(texts)["distinct_2"]
    value = bootstrap(measure.value, len(texts), num_resamples=50).estimate
    assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def test_a_fraction_of_none_is_not_certain():
    """3.7% is the upper end of Wilson's interval of 0 of 100: z^2 / (n + z^2)."""
    none, few = [False] * 100, [True] * 3 + [False] * 97
    assert bootstrap_fraction(none).high == pytest.approx(1.96**2 / (100 + 1.96**2), rel=1e-4)
    assert bootstrap_fraction([True] * 100).low == pytest.approx(1 - 1.96**2 / (100 + 1.96**2), rel=1e-4)
    assert bootstrap_fraction(few, seed=1) == bootstrap_mean([*map(float, few)], seed=1)
    row = compare(fraction_measure(none), fraction_measure(few), num_resamples=500, seed=0)
    assert (row["model"], row["baseline"]) == (wilson(0, 100), wilson(3, 100))
    assert row["difference"].estimate == -0.03 and row["difference"].low < -0.03 < row["difference"].high <= 0
