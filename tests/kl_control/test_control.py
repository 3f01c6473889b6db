# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What each controller does with a measurement: steps by hand, and closed loops with a simulated policy."""

import math
import random

import pytest

from trl_ext.kl_control import PIDKL, AdaptiveKL, FixedKL, ScheduledKL


def test_adaptive_step_by_hand():
    # Ziegler: 6.6 / 6 - 1 = 0.1, times 16 / 160; then the error 1 is clipped to 0.2; then -1 to -0.2.
    controller = AdaptiveKL(target=6.0, init_coef=0.5, horizon=160.0)
    controller.update(6.6, 16)
    assert controller.coef == pytest.approx(0.5 * 1.01)
    controller.update(12.0, 16)
    assert controller.coef == pytest.approx(0.5 * 1.01 * 1.02)
    controller.update(0.0, 32)
    assert controller.coef == pytest.approx(0.5 * 1.01 * 1.02 * 0.96)


def updates_to_double(controller, episodes):
    start, updates = controller.coef, 0
    while controller.coef < 2 * start * (1 - 1e-9):
        controller.update(100.0, episodes)
        updates += 1
    return updates


@pytest.mark.parametrize("episodes", [1, 16, 512])
@pytest.mark.parametrize("clip", [0.1, 0.2])
def test_without_a_horizon_doubling_takes_twenty_updates_whatever_the_batch(episodes, clip):
    assert updates_to_double(AdaptiveKL(target=6.0, clip=clip), episodes) == 20


def test_zieglers_horizon_is_far_too_long_for_a_small_batch():
    assert updates_to_double(AdaptiveKL(target=6.0, horizon=10_000), 16) == pytest.approx(2170, abs=10)


def test_a_horizon_shorter_than_the_batch_cannot_turn_the_coefficient_negative():
    # 1 - 0.2 * 512 / 10 = -9.24.
    controller = AdaptiveKL(target=6.0, horizon=10.0)
    controller.update(0.0, 512)
    assert controller.coef == 1e-4


def test_pid_steps_by_hand():
    # Errors 0.5, then -0.25 (integral 0.25, change -0.75), then 1 by the bound (integral 1.25, change 1.25).
    controller = PIDKL(target=2.0, init_coef=1.0, kp=0.5, ki=0.1, kd=0.2)
    logs = []
    for kl in (3.0, 1.5, 50.0):
        controller.update(kl, 16)
        logs.append(math.log(controller.coef))
    assert logs == pytest.approx([0.25 + 0.05, -0.125 + 0.025 - 0.15, 0.5 + 0.125 + 0.25])


def test_smoothing_averages_the_measurements_and_starts_at_the_first():
    # 4, then 0.75 * 4 + 0.25 * 0 = 3: errors 1 and 0.5.
    controller = PIDKL(target=2.0, init_coef=1.0, kp=1.0, ki=0.0, smoothing=0.75)
    controller.update(4.0, 16)
    assert math.log(controller.coef) == pytest.approx(1.0)
    controller.update(0.0, 16)
    assert math.log(controller.coef) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [("linear", 0.85, 0.7), ("cosine", 0.4 + 0.3 * (1 + math.sqrt(0.5)), 0.7), ("exponential", 0.795271, 0.632456)],
)
def test_schedule_by_hand(shape, quarter, half):
    controller = ScheduledKL(1.0, 0.4, 100, shape)
    assert controller.coef == 1.0
    controller.update(0.0, 25)
    assert controller.coef == pytest.approx(quarter, rel=1e-5)
    controller.update(99.0, 25)
    assert controller.coef == pytest.approx(half, rel=1e-5)
    for _ in range(3):
        controller.update(1.0, 40)
        assert controller.coef <= half
    assert controller.coef == 0.4


TARGET = 3.0


def simulate(controller, updates, lag, *, noise=0.2, strength=lambda update: 2.0, seed=0):
    """A policy that moves 1 / lag of the way to its equilibrium, KL = strength / (coef + 0.05), at every update.

    Returns the true KL after each update; the controller sees it with noise (and so sometimes below 0).
    """
    generator = random.Random(seed)
    kl, path = 0.0, []
    for update in range(updates):
        kl += (strength(update) / (controller.coef + 0.05) - kl) / lag
        controller.update(kl + generator.gauss(0.0, noise * TARGET), 16)
        path.append(kl)
    return path


def worst_error(path):
    """Largest relative error of the mean over ten updates: a policy that follows at once also follows the noise."""
    tens = [sum(path[start : start + 10]) / 10 for start in range(len(path) - 9)]
    return max(abs(kl / TARGET - 1.0) for kl in tens)


@pytest.mark.parametrize("lag", [1, 5, 20])
@pytest.mark.parametrize("init_coef", [0.01, 0.2, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adaptive_and_pid_settle_within_a_quarter_of_the_target_and_fixed_does_not(lag, init_coef, seed):
    for controller in (AdaptiveKL(target=TARGET, init_coef=init_coef), PIDKL(target=TARGET, init_coef=init_coef)):
        path = simulate(controller, 450, lag, seed=seed)
        assert worst_error(path[300:]) < 0.25, type(controller).__name__
    assert worst_error(simulate(FixedKL(init_coef), 450, lag, seed=seed)[300:]) > 0.25


def test_pid_settles_a_slow_policy():
    assert worst_error(simulate(PIDKL(target=TARGET), 450, 50)[300:]) < 0.25


@pytest.mark.parametrize("lag", [10, 20, 50])
def test_pid_does_not_lower_the_coefficient_while_the_kl_is_on_its_way(lag):
    """From an initial coefficient that is right: with every error summed the KL goes twice as far past the target."""
    held, plain = (PIDKL(target=TARGET, init_coef=2.0 / TARGET - 0.05) for _ in range(2))
    plain.load_state_dict({**plain.state_dict(), "arrived": 1.0})
    path, without = (simulate(controller, 300, lag, noise=0.0) for controller in (held, plain))
    assert worst_error(path[250:]) < 0.05
    assert max(path) - TARGET < 0.5 * (max(without) - TARGET) and max(without) > 1.1 * TARGET


def test_pid_sums_while_the_kl_is_not_on_its_way():
    held = PIDKL(target=TARGET, kp=0.0, ki=0.1)
    for kl in (0.0, 0.0, 0.01):  # at this pace 300 updates more
        held.update(kl, 16)
    assert math.log(held.coef / 0.2) == pytest.approx(-0.1 * (1 + 1 + 1 - 0.01 / TARGET))
    for kl in (0.2, 0.5, 2.9):
        held.update(kl, 16)
    assert math.log(held.coef / 0.2) == pytest.approx(-0.1 * (3 - 0.01 / TARGET)), "it arrives within 20 updates"
    for kl in (3.0, 2.4):
        held.update(kl, 16)
    assert math.log(held.coef / 0.2) == pytest.approx(-0.1 * (3 - 0.01 / TARGET + 0.2)), "it has arrived"


def test_pid_leaves_a_bound_as_soon_as_the_error_changes_sign():
    # 400 updates with a policy that cannot reach the target even at the lowest coefficient, then one that can.
    # Had the integral gone on, it would have to unwind 400 errors at no more than one per update.
    controller = PIDKL(target=TARGET, min_coef=0.05, max_coef=5.0)
    simulate(controller, 400, 5, strength=lambda update: 0.05)
    assert controller.coef == 0.05
    recovery = simulate(controller, 80, 5, strength=lambda update: 2.0)
    assert worst_error(recovery[60:]) < 0.25


@pytest.mark.parametrize(("kl", "bound"), [(50.0, 5.0), (0.0, 0.05)])
def test_the_integral_stops_at_both_bounds(kl, bound):
    controller = PIDKL(target=TARGET, kp=0.0, ki=0.1, min_coef=0.05, max_coef=5.0)
    for _ in range(500):
        controller.update(kl, 16)
    # The integral may lie at most one step short of the bound itself, and never beyond it.
    assert controller.coef == bound
    for _ in range(2):
        controller.update(TARGET * 1.5 if kl == 0.0 else TARGET * 0.5, 16)
    assert controller.coef != bound


def test_an_integral_from_a_run_with_wider_bounds_unwinds():
    # log 0.2 + 0.1 * 60 is far above log 0.5; 60 errors of -1 must bring it back in, not stay locked out.
    controller = PIDKL(target=TARGET, max_coef=0.5)
    controller.load_state_dict({**controller.state_dict(), "integral": 60.0, "previous_error": 1.0, "smoothed_kl": 9.0})
    for _ in range(60):
        controller.update(0.0, 16)
    assert controller.coef < 0.2
