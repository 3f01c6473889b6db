# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Best-of-n from samples that are there: by enumeration of all subsets, by hand, and against fresh draws."""

import itertools
import math
import statistics

import pytest
import torch

from trl_ext.evaluation.best_of_n import best_of_n, best_of_n_weights, kl_bound


def test_weights_by_hand():
    """Of 4 samples 6 pairs: the smallest is best in none, the next in 1, then 2, then 3."""
    rewards = torch.tensor([[3.0, 1.0, 4.0, 2.0]])
    assert best_of_n_weights(rewards, 2).tolist() == [[pytest.approx(w) for w in (2 / 6, 0, 3 / 6, 1 / 6)]]
    assert best_of_n_weights(rewards, 1).tolist() == [[0.25] * 4]
    assert best_of_n_weights(rewards, 4).tolist() == [[0.0, 0.0, 1.0, 0.0]]
    # Equal rewards share: the three pairs with a 5 are decided by lot.
    assert best_of_n_weights(torch.tensor([[5.0, 5.0, 0.0]]), 2).tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("n", range(1, 8))
def test_the_estimate_is_the_mean_over_all_subsets(n):
    generator = torch.Generator().manual_seed(n)
    rewards = torch.randint(0, 6, (3, 7), generator=generator).double()  # with ties
    judged = torch.rand(3, 7, generator=generator, dtype=torch.float64)
    best, chosen = [], []
    for row, values in zip(rewards.tolist(), judged.tolist(), strict=True):
        for subset in itertools.combinations(range(7), n):
            top = max(row[i] for i in subset)
            best.append(top)
            chosen.append(statistics.fmean(values[i] for i in subset if row[i] == top))
    weights = best_of_n_weights(rewards, n)
    assert torch.allclose(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert float((weights * rewards).sum(1).mean()) == pytest.approx(statistics.fmean(best))
    assert float((weights * judged).sum(1).mean()) == pytest.approx(statistics.fmean(chosen))  # ties by lot


def test_uniform_rewards_and_the_bound():
    """The best of n uniform numbers is n / (n + 1) on average; the bound is log n - (n - 1) / n."""
    rewards = torch.rand(4000, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = best_of_n(rewards, {"other": 1 - rewards})
    assert [row["n"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    for row in rows:
        assert row["reward"] == pytest.approx(row["n"] / (row["n"] + 1), abs=0.003)
        assert row["other"] == pytest.approx(1 - row["reward"])
    assert [kl_bound(n) for n in (1, 2, 64)] == [0.0, pytest.approx(0.19314718), pytest.approx(3.17450809)]
    assert [row["n"] for row in best_of_n(rewards[:, :5])] == [1, 2, 4]


def test_the_bound_is_above_the_exact_kl_and_the_estimate_is_the_exact_reward():
    """Three completions of known probabilities: the best of n has a reward of at most r with probability F(r)^n."""
    p, values = [0.5, 0.3, 0.2], [0.0, 1.0, 5.0]
    drawn = torch.multinomial(torch.tensor(p), 600 * 64, replacement=True, generator=torch.Generator().manual_seed(1))
    rows = best_of_n(torch.tensor(values, dtype=torch.float64)[drawn].view(600, 64))
    for row in rows:
        below = [sum(p[:i]) ** row["n"] for i in range(4)]
        best = [high - low for low, high in itertools.pairwise(below)]
        kl = sum(q * math.log(q / own) for q, own in zip(best, p, strict=True) if q > 0)
        assert kl <= row["kl_bound"] + 1e-12
        assert row["reward"] == pytest.approx(sum(q * v for q, v in zip(best, values, strict=True)), abs=0.05)
    assert kl < 0.6 * row["kl_bound"]  # few completions: the bound is far above


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match="`n` is 4; it must be between 1 and the 3 samples"):
        best_of_n_weights(torch.zeros(1, 3), 4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        best_of_n(torch.tensor([[math.nan]]))
