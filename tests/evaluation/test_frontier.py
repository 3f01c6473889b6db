# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The optimal frontier against closed forms and against policies that are not optimal."""

import math
import warnings

import pytest
import torch

from trl_ext.evaluation.frontier import default_betas, expected, kl_at_reward, optimal_frontier, point_at_reward, tilted

# The reference says a, b, c with probability 1/2, 1/4, 1/4, for rewards 0, 1, 2. With exp(1 / beta) = 2 the optimum is
# proportional to 1/2 * 1, 1/4 * 2, 1/4 * 4, so it is 1/4, 1/4, 1/2: reward 1.25, KL 1/4 ln(1/2) + 1/2 ln 2
# = ln(2) / 4.
DISCRETE = torch.tensor([[0.0, 0.0, 1.0, 2.0]])
BETA = 1 / math.log(2)


def normal_quantiles(mean: float, std: float, count: int) -> torch.Tensor:
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (mean + std * torch.special.ndtri(grid))[None]


def test_discrete_optimum_worked_by_hand():
    (point,) = optimal_frontier(DISCRETE, [BETA])
    assert tilted(DISCRETE, BETA)[0].tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 2])
    assert point.reward == pytest.approx(1.25)
    assert point.kl == pytest.approx(0.17328679513998632)
    assert point.ess == pytest.approx(1 / (1 / 64 + 1 / 64 + 1 / 16 + 1 / 4))


@pytest.mark.parametrize("beta", [0.8, 1.5, 4.0])
def test_gaussian_rewards(beta):
    mean, std = -3.0, 1.5
    (point,) = optimal_frontier(normal_quantiles(mean, std, 200_001), [beta])
    assert point.kl == pytest.approx(std**2 / (2 * beta**2), rel=2e-2)
    assert point.reward == pytest.approx(mean + std**2 / beta, abs=2e-2)


def test_average_over_prompts_and_second_quantity():
    rewards = torch.cat([DISCRETE, torch.full((1, 4), 7.0)])
    (point,) = optimal_frontier(rewards, [BETA])
    # Equal rewards leave the second prompt as it is: KL 0, reward 7, all 4 samples effective.
    assert point.kl == pytest.approx(0.17328679513998632 / 2)
    assert point.reward == pytest.approx((1.25 + 7) / 2)
    assert point.ess == pytest.approx((2.909090909 + 4) / 2)
    lengths = torch.tensor([[8.0, 8.0, 4.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    assert expected(lengths, tilted(rewards, BETA)) == pytest.approx(((8 + 8) / 8 + 1 + 1 + 2.5) / 2)


def test_far_from_zero_and_tiny_beta_stay_finite():
    near = optimal_frontier(DISCRETE, [BETA, 1e-4])
    far = optimal_frontier(DISCRETE + 1e6, [BETA, 1e-4])
    for a, b in zip(near, far, strict=True):
        assert b.kl == pytest.approx(a.kl, abs=1e-6)
        assert b.reward - 1e6 == pytest.approx(a.reward, abs=1e-6)
    # As beta goes to 0 all weight is on the best of 4 samples.
    assert near[1].kl == pytest.approx(math.log(4))


def test_kl_at_reward_inverts_the_frontier():
    torch.manual_seed(0)
    rewards = 3 * torch.randn(5, 400, dtype=torch.float64)
    for point in optimal_frontier(rewards, [2.0, 5.0, 50.0]):
        assert kl_at_reward(rewards, point.reward) == pytest.approx(point.kl, rel=1e-6)
        assert point_at_reward(rewards, point.reward).beta == pytest.approx(point.beta, rel=1e-6)
    assert kl_at_reward(DISCRETE, 1.25, min_ess=1) == pytest.approx(math.log(2) / 4)


def test_kl_at_reward_limits():
    assert kl_at_reward(DISCRETE, 0.75) == 0.0
    assert kl_at_reward(DISCRETE, -5.0) == 0.0
    assert kl_at_reward(DISCRETE, 2.01) == math.inf
    assert kl_at_reward(torch.full((2, 3), 1.0), 1.0) == 0.0


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, -1 / 3, 0.0])
@pytest.mark.parametrize("shape", [(3, 7), (5, 32), (128, 32)])
def test_rewards_that_are_all_equal_cost_nothing(shape, value):
    """The mean over prompts of the mean over samples is not, to the last bit, the mean of all."""
    rewards = torch.full(shape, value, dtype=torch.float64)
    for target in (value, float(rewards.mean()), float(rewards.mean(-1).mean())):
        assert kl_at_reward(rewards, target) == 0.0
    assert kl_at_reward(rewards, value + 0.01) == math.inf


def test_few_effective_samples_warn():
    torch.manual_seed(0)
    rewards = torch.randn(4, 200)
    with pytest.warns(UserWarning, match="samples per prompt"):
        kl_at_reward(rewards, float(rewards.max(-1).values.mean()) - 0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kl_at_reward(rewards, float(rewards.mean()) + 0.2)


def test_no_other_policy_gets_the_reward_cheaper():
    torch.manual_seed(0)
    rewards = torch.randn(3, 16, dtype=torch.float64)
    for _ in range(20):
        policy = torch.softmax(torch.randn(3, 16, dtype=torch.float64) + rewards * torch.rand(3, 1), -1)
        reward = float((policy * rewards).sum(-1).mean())
        kl = float((policy * (policy * 16).log()).sum(-1).mean())
        assert kl_at_reward(rewards, reward, min_ess=1) <= kl + 1e-9


def test_default_betas_follow_the_scale_of_the_reward():
    torch.manual_seed(0)
    rewards = torch.randn(8, 64)
    betas = default_betas(rewards)
    assert betas == sorted(betas, reverse=True)
    assert default_betas(10 * rewards + 3) == pytest.approx([10 * beta for beta in betas], rel=1e-5)
    points = optimal_frontier(rewards)
    assert points[0].kl < 0.01 and points[-1].kl > 1.0


@pytest.mark.parametrize(
    ("rewards", "beta", "message"),
    [
        (torch.zeros(3), 1.0, r"shape \(3,\)"),
        (torch.zeros(0, 4), 1.0, r"shape \(0, 4\)"),
        (torch.tensor([[0.0, math.nan]]), 1.0, "1 of 2 rewards"),
        (DISCRETE, 0.0, "`beta` is 0.0"),
        (DISCRETE, math.nan, "`beta` is nan"),
    ],
)
def test_bad_input(rewards, beta, message):
    with pytest.raises(ValueError, match=message):
        tilted(rewards, beta)


def test_bad_target_and_shapes():
    with pytest.raises(ValueError, match="`target` is nan"):
        kl_at_reward(DISCRETE, math.nan)
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(1, 4\)"):
        expected(torch.zeros(1, 3), tilted(DISCRETE, 1.0))
