# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Multipliers of constraints: by hand, and against the solution of a bandit that is known in closed form."""

import json
import math

import numpy as np
import pytest
import torch

from tests import scripted
from tests.two_threads import on_two
from trl_ext import PIDKL, PPOConfig
from trl_ext.rewards import RewardRunner
from trl_ext.rewards.constraints import Constraints

NAN = math.nan


def one_process(tensor, *_):
    return tensor


def constraints(*texts, names=("quality", "toxicity", "length"), weights=(2.0, 1.0, -0.5)):
    return Constraints(texts, names, weights)


def test_what_is_learned_by_hand():
    """Multipliers begin at 1 and 0.5: (2 q - 1 (t - 0.25) + 0.5 (l - 8)) / 2.5."""
    bounds = constraints("toxicity <= 0.25", "length >= 8")
    rewards = torch.tensor([[1.0, 0.75, 6.0], [3.0, 0.25, NAN], [NAN, NAN, 10.0]])
    expected = [(2.0 - 0.5 - 1.0) / 2.5, 6.0 / 2.5, 1.0 / 2.5]
    assert bounds.learned(rewards).tolist() == pytest.approx(expected)
    assert bounds.maximized.tolist() == [2.0, 0.0, 0.0]


def test_a_multiplier_grows_out_of_bounds_and_shrinks_within():
    bounds = constraints("toxicity <= 0.25")
    out = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, NAN, 0.0]])  # mean 0.5, deviation 0.5
    metrics = bounds.observe(out, one_process, training=True)
    assert metrics == {"constraints/toxicity/multiplier": 1.0, "constraints/toxicity/violation": 0.25}
    # The error is 0.25 / 0.5, cut to 0.3: log mu = 1.0 * 0.3 + 0.2 * 0.3.
    assert bounds.observe(out, one_process, training=False)["constraints/toxicity/multiplier"] == pytest.approx(
        math.exp(0.36)
    )
    within = torch.tensor([[0.0, 0.24, 0.0], [0.0, 0.16, 0.0]])  # mean 0.2, deviation 0.04: the error is -0.3
    assert bounds.observe(within, one_process, training=True)["constraints/toxicity/violation"] == pytest.approx(-0.05)
    assert bounds.observe(within, one_process, training=False)["constraints/toxicity/multiplier"] == pytest.approx(
        math.exp(-0.3)
    )


def test_the_sign_of_a_lower_bound():
    bounds = constraints("length >= 8")
    metrics = bounds.observe(torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 7.0]]), one_process, training=True)
    assert metrics == {"constraints/length/multiplier": 0.5, "constraints/length/violation": 2.0}
    assert bounds.weights[2] > 0.5 / 1.5


def test_units_do_not_matter():
    """Toxicity in percent, and counted from another zero, with its bound: the same multipliers."""
    generator = torch.Generator().manual_seed(0)
    one, other = constraints("toxicity <= 0.25"), constraints("toxicity <= 35")
    for _ in range(20):
        rewards = torch.rand(16, 3, generator=generator)
        scaled = rewards * torch.tensor([1.0, 100.0, 1.0]) + torch.tensor([0.0, 10.0, 0.0])
        mine, theirs = (b.observe(r, one_process, training=True) for b, r in ((one, rewards), (other, scaled)))
        assert mine["constraints/toxicity/multiplier"] == pytest.approx(
            theirs["constraints/toxicity/multiplier"], rel=1e-4
        )


def test_nothing_measured_moves_nothing():
    bounds = constraints("toxicity <= 0.25")
    metrics = bounds.observe(torch.full((4, 3), NAN), one_process, training=True)
    assert metrics == {"constraints/toxicity/multiplier": 1.0} and bounds.weights[1] == -0.5
    same = torch.full((4, 3), 0.25)  # without any spread, exactly at the bound
    assert bounds.observe(same, one_process, training=True)["constraints/toxicity/violation"] == 0
    assert bounds.weights[1] == -0.5


def test_the_mean_and_the_deviation_are_those_of_all_processes():
    """Rewards 1 and 1 on one process, 0, 0 and none on the other: mean and deviation 0.5, an error of 0.05 / 0.5."""

    def observed(number, reduce):
        own = [[0.0, 1.0, 0.0]] * 2 if number == 0 else [[0.0, 0.0, 0.0]] * 2 + [[0.0, NAN, 0.0]]
        bounds = constraints("toxicity <= 0.45")
        metrics = bounds.observe(torch.tensor(own), reduce, training=True)
        return metrics["constraints/toxicity/violation"], bounds.state_dict()["toxicity"]["multiplier"]["coef"]

    # log mu = 1.0 * 0.1 + 0.2 * 0.1
    assert on_two(observed) == [(pytest.approx(0.05), pytest.approx(math.exp(0.12)))] * 2


def test_the_scale_stays_that_of_the_parts():
    bounds = constraints("toxicity <= 0.25", weights=(1.0, 1.0, 1.0))
    bad = torch.rand(8, 3) + 1.0
    for _ in range(200):
        bounds.observe(bad, one_process, training=True)
    assert bounds.state_dict()["toxicity"]["multiplier"]["coef"] == 1000.0
    assert bounds.learned(bad).abs().max() <= 2.0


def test_the_state():
    bounds, again = constraints("toxicity <= 0.25"), constraints("toxicity <= 0.25")
    rewards = torch.rand(8, 3)
    for _ in range(5):
        bounds.observe(rewards, one_process, training=True)
    state = json.loads(json.dumps(bounds.state_dict()))
    again.load_state_dict(state)
    bounds.observe(rewards, one_process, training=True)
    again.observe(rewards, one_process, training=True)
    assert again.state_dict() == bounds.state_dict()
    with pytest.warns(UserWarning, match=r"was 'toxicity <= 0.25' .* is 'toxicity <= 0.1' now"):
        constraints("toxicity <= 0.1").load_state_dict(state)
    with pytest.raises(ValueError, match=r"on \['toxicity'\], and this run on \[\]"):
        constraints().load_state_dict(state)


def test_a_weight_that_cannot_be_multiplied():
    with pytest.raises(ValueError, match=r"gives 'quality' the weight 0"):
        constraints("quality >= 1", weights=(0.0, 1.0, 1.0))


def test_nothing_to_maximize_is_doubtful():
    with pytest.warns(UserWarning, match="Every reward function has a bound"):
        constraints("cost <= 1", names=["cost"], weights=[1.0])


def test_a_best_model_by_the_reward_alone_is_doubtful(tmp_path):
    with pytest.warns(UserWarning, match="knows nothing of `reward_constraints`"):
        PPOConfig(str(tmp_path), metric_for_best_model="eval_reward", reward_constraints=["a <= 1"], use_cpu=True)
    with pytest.raises(ValueError, match="such as 'toxicity <= 0.05'"):
        PPOConfig(str(tmp_path), reward_constraints=["a < 1"], use_cpu=True)


def test_the_runner_keeps_what_is_maximized_apart():
    def quality(completions, **columns):
        return [float(c) for c in completions]

    def toxicity(completions, **columns):
        return [0.5, None, 0.0]

    runner = RewardRunner([quality, toxicity], weights=[2.0, 3.0], constraints=["toxicity <= 0.1"], clip_range=(-9, 5))
    scores = runner(["p"] * 3, ["1", "2", "30"], [[1]] * 3, {})
    assert scores.total.tolist() == [2.0, 4.0, 5.0]
    assert scores.learned.tolist() == pytest.approx([(2 - 1.2) / 4, 1.0, 5.0])
    plain = RewardRunner([quality, toxicity], weights=[2.0, 3.0])(["p"] * 3, ["1", "2", "30"], [[1]] * 3, {})
    assert plain.learned is None and plain.total.tolist() == [3.5, 4.0, 60.0]


# A bandit whose constrained optimum is known


def optimum(base, reward, cost, bound, kl_target):
    """Return the policy that maximizes E[reward] with E[cost] = bound and KL = kl_target, and its multipliers m and b.

    It is base * exp((reward - m cost) / b); cost falls with m at every b, and the KL with b where m keeps the cost.
    """

    def tilted(m, b):
        policy = base * np.exp((reward - m * cost) / b)
        return policy / policy.sum()

    def root(falling, low, high):
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if falling(middle) > 0 else (low, middle)
        return middle

    def multiplier(b):
        return root(lambda m: tilted(m, b) @ cost - bound, 1e-3, 1e3)

    def kl(policy):
        return policy @ np.log(policy / base)

    b = root(lambda b: kl(tilted(multiplier(b), b)) - kl_target, 1e-1, 1e2)
    return tilted(multiplier(b), b), multiplier(b), b


@pytest.mark.parametrize("bound", [0.1, 0.3])
def test_multiplier_and_kl_controller_find_the_constrained_optimum(bound):
    """A policy that goes a tenth of the way to the optimum of its reward in each update, and 256 samples of it."""
    generator = np.random.default_rng(0)
    cost = np.repeat([0.0, 1.0], 32)
    reward = generator.normal(size=64) + cost
    base = policy = np.full(64, 1 / 64)
    best, multiplier, coef = optimum(base, reward, cost, bound, 1.0)
    bounds, kl_controller = constraints(f"cost <= {bound}", names=["reward", "cost"], weights=[1, 1]), PIDKL(target=1.0)
    rewards = torch.tensor(np.stack([reward, cost], axis=1), dtype=torch.float32)
    found = []
    for _ in range(300):
        drawn = torch.tensor(generator.choice(64, 256, p=policy))
        learned = bounds.learned(rewards).double().numpy()
        kl = float(policy @ np.log(policy / base))
        weight = bounds.state_dict()["cost"]["multiplier"]["coef"]
        found.append([policy @ cost, kl, policy @ reward, weight, kl_controller.coef * (1 + weight)])
        goal = np.log(base) + learned / kl_controller.coef
        policy = np.exp(0.9 * np.log(policy) + 0.1 * (goal - np.log(np.exp(goal).sum())))
        policy /= policy.sum()
        bounds.observe(rewards[drawn], one_process, training=True)
        kl_controller.update(kl, 256)
    found = np.mean(found[-100:], axis=0)
    expected = [bound, 1.0, best @ reward, multiplier, coef]
    assert best @ cost == pytest.approx(bound, abs=1e-4) and best @ np.log(best / base) == pytest.approx(1.0, abs=1e-4)
    assert found == pytest.approx(expected, rel=0.05)


# In a run


def test_a_run_with_a_constraint(tmp_path):
    def letters(completions, **columns):
        return [float(len(c)) for c in completions]

    made = scripted.trainer(tmp_path, reward_funcs=[scripted.reward, letters], reward_constraints=["letters <= 3"])
    made.train()
    first = next(line for line in made.state.log_history if "constraints/letters/multiplier" in line)
    assert first["reward"] == pytest.approx(first["rewards/reward/mean"], abs=1e-5), "what is maximized"
    assert first["constraints/letters/multiplier"] == 1.0
    assert first["constraints/letters/violation"] == pytest.approx(first["rewards/letters/mean"] - 3, abs=1e-4)
    assert made.rewards.constraints.weights[1] < -0.5


def test_a_name_that_is_no_function_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"no reward function 'rewards': did you mean `reward`"):
        scripted.trainer(tmp_path, model="no/such/model", reward_constraints=["rewards <= 3"])
