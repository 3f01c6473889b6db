# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Scores by category before and after: what is called a loss, and what is noise."""

import itertools
import math

import numpy as np
import pytest

from trl_ext.monitoring.categories import category_changes, losses_text


def changes_of(differences, **options):
    """Return the changes of one category, named a, with these differences."""
    return category_changes(["a"] * len(differences), [0.0] * len(differences), differences, **options)


def test_the_interval_is_that_of_the_means_of_all_subsets():
    """Hartigan's typical values, by enumeration: 2^12 - 1 subset means, and the empty subset at either end."""
    differences = np.random.default_rng(3).normal(-0.4, 1.0, 12)
    subsets = itertools.product((False, True), repeat=12)
    means = sorted(float(differences[np.array(chosen)].mean()) for chosen in subsets if any(chosen))
    (change,) = changes_of(differences.tolist())
    place = round(0.025 * 4096)
    assert change.low == pytest.approx(means[place], abs=0.03) and change.high == pytest.approx(means[-place], abs=0.03)
    assert change.before == 0 and change.after == pytest.approx(differences.mean()) and change.prompts == 12


def test_an_interval_without_0_is_a_sign_flip_test_that_rejects():
    for seed in range(20):
        differences = np.random.default_rng(seed).normal(-0.6, 1.0, 10)
        flips = np.array(list(itertools.product((-1, 1), repeat=10))) @ differences
        p_value = float(np.mean(flips <= differences.sum() + 1e-12))  # one-sided
        if abs(p_value - 0.025) > 0.005:  # beyond the error of the random subsets
            assert changes_of(differences.tolist())[0].lost == (p_value < 0.025), (seed, p_value)


def test_few_prompts_prove_nothing():
    """All of n prompts lost has the chance 2^-n where nothing changed: 1/32 is above 2.5%, 1/64 below."""
    (five,), (six,) = changes_of([-1.0] * 5), changes_of([-1.0] * 6)
    assert not five.lost and (five.low, five.high) == (-math.inf, math.inf)
    assert six.lost and (six.low, six.high) == (-1.0, -1.0)
    assert not changes_of([-1.0] * 5 + [0.0] * 100)[0].lost  # prompts without a change add nothing
    # Of 512 subsets 15 have a sum above 0, and 21 one of 0, some of them only but for rounding: 36 do not lose.
    assert not changes_of([0.3] + [-0.1] * 4 + [-0.2] * 4, confidence=0.9)[0].lost
    assert changes_of([0.2999] + [-0.1] * 4 + [-0.2] * 4, confidence=0.9)[0].lost
    # With two categories each has half of the 5%: six prompts are too few, seven are not.
    for count, is_lost in ((6, False), (7, True)):
        names = ["a"] * count + ["b"] * count
        found = category_changes(names, [0.0] * 2 * count, [-1.0] * count + [0.0] * count)
        assert [change.lost for change in found] == [is_lost, False]


def test_where_nothing_changed_a_category_is_named_in_at_most_5_percent_of_runs():
    generator, named = np.random.default_rng(0), 0
    categories = [i % 17 for i in range(510)]
    for _ in range(60):
        before, after = ((generator.random(510) < 0.4).astype(float).tolist() for _ in range(2))
        named += any(change.lost for change in category_changes(categories, before, after))
    assert named <= 6  # more has a chance of 3% at 5%


def test_a_lost_category_is_found_among_noise_and_named_first():
    generator = np.random.default_rng(1)
    categories = ["add"] * 40 + [f"kind {i % 8}" for i in range(320)]
    before = (generator.random(360) < 0.45).astype(float)
    after = (generator.random(360) < np.array([0.1] * 40 + [0.75] * 320)).astype(float)
    found = category_changes(categories, before.tolist(), after.tolist())
    assert [change.category for change in found if change.lost] == ["add"] and found[0].category == "add"
    text = losses_text(found, "gold reward")
    assert text.startswith("By category: the gold reward got worse in 1 of 9 categories: `add` from 0.")
    assert losses_text(found[1:], "reward") == ("By category: the reward got worse measurably in none of 8 categories.")
    assert losses_text([], "reward") == ""


def test_scores_where_lower_is_better_and_prompts_without_a_score():
    rose = changes_of([1.0] * 10, higher_is_better=False)
    assert rose[0].lost and not changes_of([-1.0] * 10, higher_is_better=False)[0].lost
    (change,) = category_changes(["a"] * 8, [0.0] * 7 + [None], [math.nan] + [-1.0] * 7)
    assert change.prompts == 6 and change.lost
    assert category_changes(["a"], [None], [1.0]) == []
    with pytest.raises(ValueError, match="1 categories, 2 scores before and 2 after"):
        category_changes(["a"], [0, 1], [0, 1])
