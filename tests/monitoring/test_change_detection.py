# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""False alarms and delays of the two tests by simulation, with fixed seeds, and their figures against SciPy's."""

import json
import math

import numpy as np
import pytest

from trl_ext.monitoring.change_detection import Drift, Finding, Noise, Overoptimization


def noise_of(values) -> float:
    noise = Noise()
    for value in values:
        noise.add(float(value))
    return noise.variance


def test_noise_is_what_remains_of_a_series_without_its_trend():
    assert noise_of([0.0, 1.0, 0.0]) == pytest.approx((2 / 0.67449) ** 2 / 6, rel=1e-4)
    assert noise_of([1.0, 2.0]) == 0.0
    assert noise_of(np.linspace(-5, 90, 50)) == pytest.approx(0.0, abs=1e-12)
    generator = np.random.default_rng(0)
    steep = 3 * np.arange(4000) + 2 * generator.normal(size=4000)
    assert noise_of(steep) == pytest.approx(4.0, rel=0.2)
    steep[2000:] -= 1e6
    assert noise_of(steep) == pytest.approx(4.0, rel=0.2), "one sudden change is no noise either"


# Drift


def first_alarm(drift: Drift, values) -> int | None:
    return next((i for i, value in enumerate(values) if drift.add(float(value)) >= 1), None)


@pytest.mark.parametrize("tolerance", [0.01, 1.0, 4.0])
def test_a_stationary_signal_raises_no_alarm(tolerance):
    generator = np.random.default_rng(1)
    alarms = [first_alarm(Drift(tolerance), generator.normal(size=1000)) for _ in range(40)]
    assert alarms == [None] * 40


def test_a_drift_within_the_tolerance_is_no_alarm_and_one_beyond_it_soon_is():
    generator = np.random.default_rng(2)
    slow = np.linspace(0, 0.9, 500)
    for _ in range(20):
        noise = 0.1 * generator.normal(size=500)
        assert first_alarm(Drift(1.0), slow + noise) is None
        jump = np.where(np.arange(500) < 100, 0.0, 1.5)
        alarm = first_alarm(Drift(1.0), jump + noise)
        assert alarm is not None and 102 <= alarm <= 106
        assert first_alarm(Drift(1.0), -jump + noise) is None, "one-sided"


def test_no_single_value_raises_the_alarm():
    values = [0.0, 0.1] * 20 + [1e6] + [0.0, 0.1] * 20
    assert first_alarm(Drift(0.5), values) is None


def test_a_signal_without_noise():
    assert first_alarm(Drift(0.5), [1.0] * 100) is None
    assert first_alarm(Drift(0.5, warmup=3), [1.0] * 10 + [1.7] * 90) is not None


def test_rare_values_among_equal_ones_are_no_drift():
    """3 of 100 completions repeat themselves, four or eight to a rollout; then half of them do."""
    generator = np.random.default_rng(4)
    for size in (4, 8):
        rare = (generator.random((20, 500, size)) < 0.03).mean(-1)
        assert sum(first_alarm(Drift(0.05), values) is not None for values in rare) <= 1
        often = (generator.random((50, size)) < 0.5).mean(-1)
        alarm = first_alarm(Drift(0.05), [*rare[0][:50], *often])
        assert alarm is not None and 50 <= alarm < 70


def test_the_warmup_says_where_it_started():
    drift = Drift(0.5, warmup=4)
    for value in (1.0, 2.0, 3.0, 4.0, 100.0):
        drift.add(value)
    assert drift.start == 2.5


# Overoptimization


def run(gold, proxy=None, *, paired=True, stop=True):
    """The first evaluations with an alarm, (fall, divergence)."""
    test = Overoptimization(paired=paired)
    alarms: dict[str, int] = {}
    for i, row in enumerate(gold):
        findings = test.add(i, float(proxy[i]) if proxy is not None else 0.0, [float(score) for score in row])
        for name, finding in zip(("fall", "divergence"), findings, strict=True):
            if finding.evidence >= 1:
                alarms.setdefault(name, i)
        if len(alarms) == 2 and stop:
            break
    return alarms.get("fall"), alarms.get("divergence")


def test_two_evaluations_of_the_same_prompts_are_students_paired_test():
    """Tables give 3.169 for t with 10 degrees of freedom, and 2.576 for a normal variable, exceeded by 1 in 200."""
    scatter = np.arange(11) - 5.0
    differences = scatter / scatter.std(ddof=1) + 3.169 / math.sqrt(11)
    after = np.random.default_rng(3).normal(size=11)
    test = Overoptimization(paired=True)
    test.add(3, 0.0, (after + differences).tolist())
    fall, divergence = test.add(7, 0.0, after.tolist())
    assert fall.z == pytest.approx(2.576, abs=0.003)
    assert (fall.step, *fall.gold) == (3, pytest.approx((after + differences).mean()), pytest.approx(after.mean()))
    assert divergence == Finding() and divergence.evidence == 0


def test_two_evaluations_of_different_prompts_are_students_test():
    """Means 2 and 0, both variances 1: 2 / sqrt(1/3 + 1/3)."""
    test = Overoptimization(paired=False)
    test.add(0, 0.0, [1.0, 2.0, 3.0])
    fall, _ = test.add(1, 0.0, [0.0, 1.0, -1.0])
    assert fall.z == pytest.approx(2.449, abs=1e-3)


def stationary(kind, generator, looks=40, prompts=32):
    proxy = generator.normal(size=looks)
    noise = generator.normal(size=(looks, prompts))
    if kind == "prompts that differ":
        gold = 3 * generator.normal(size=(1, prompts)) + noise
    elif kind == "right or wrong":
        gold = (generator.random((looks, prompts)) < 0.9).astype(float)
    elif kind == "the same random numbers every time":
        # Neighbours in time are alike, so their differences are small; what is far apart is not.
        gold = noise.copy()
        for i in range(1, looks):
            gold[i] = 0.95 * gold[i - 1] + math.sqrt(1 - 0.95**2) * noise[i]
    else:
        gold = noise - 0.1 * proxy[:, None]  # a bad reward model
    return gold, proxy


@pytest.mark.parametrize(
    ("kind", "paired"),
    [
        ("prompts that differ", True),
        ("prompts that differ", False),
        ("right or wrong", True),
        ("the same random numbers every time", True),
        ("a bad reward model", False),
    ],
)
def test_a_stationary_run_raises_no_alarm(kind, paired):
    generator = np.random.default_rng(5)
    alarms = [run(*stationary(kind, generator), paired=paired) for _ in range(5)]
    assert alarms == [(None, None)] * 5


def test_the_rare_failures_of_a_good_policy_are_no_fall():
    """1 of 100 samples fails, and rollouts are small: two failures in one come up now and then."""
    generator = np.random.default_rng(9)
    for _ in range(8):
        gold = (generator.random((60, 8)) < 0.99).astype(float)
        assert run(gold, generator.normal(size=60), paired=False) == (None, None)
    worse = np.concatenate([gold[:50], (generator.random((10, 8)) < 0.5).astype(float)])
    assert run(worse, np.zeros(60), paired=False)[0] is not None


def test_the_limit_grows_with_the_length_of_a_run():
    """Simulated, 300 runs of 1,000 rollouts: 1 to 2 in 100 raise an alarm, 22 in 100 by the limit of the first 60."""
    history = Overoptimization(paired=False)
    history.add(0, 0.0, [0.0, 2.0, 1.0])
    first, _ = history.add(1, 0.0, [0.0, 1.0, 0.5])
    long = Overoptimization(paired=False)
    state = history.state_dict()
    state["blocks"][0]["looks"] = 598
    long.load_state_dict(state)
    later, _ = long.add(2, 0.0, [0.0, 0.0, 0.5])
    assert first.limit == 4.5 and later.limit == pytest.approx(math.sqrt(4.5**2 + 3 * math.log(10)))
    assert later.evidence == later.z / later.limit > 0


def gao(form: str, looks: int) -> tuple[np.ndarray, np.ndarray]:
    """Proxy and gold, 1 at its peak, over training: d (a - b log d) and d (a - b d) with d = sqrt(KL), KL growing
    steadily until all that gold had gained is lost.
    """
    a, b = 1.0, 0.5
    d = (math.exp(a / b) if form == "rl" else a / b) * np.sqrt(np.arange(looks) / (looks - 1))
    gold = d * (a - b * np.log(np.maximum(d, 1e-9))) if form == "rl" else d * (a - b * d)
    return d / d.max(), gold / gold.max()


@pytest.mark.parametrize("form", ["rl", "bon"])
@pytest.mark.parametrize("paired", [True, False])
def test_the_alarm_comes_before_a_quarter_of_the_gain_is_lost(form, paired):
    """128 samples an evaluation, whose standard deviation is the whole gain of gold at its peak."""
    proxy, gold = gao(form, 60)
    generator = np.random.default_rng(6)
    lost, fallen = [], []
    for _ in range(4):
        scores = gold[:, None] + math.sqrt(0.5) * generator.normal(size=(60, 128))
        scores += math.sqrt(0.5) * generator.normal(size=(1, 128))
        fall, divergence = run(scores, 2 * proxy + 0.06 * generator.normal(size=60), paired=paired)
        assert divergence is not None and fall is not None and divergence <= fall
        assert gold[divergence] > 0.9 or divergence > gold.argmax(), "not while gold still rises"
        lost.append(1 - gold[divergence])
        fallen.append(1 - gold[fall])
    assert max(lost) < 0.25 and np.median(fallen) < 0.4


@pytest.mark.parametrize("paired", [True, False])
def test_a_run_that_gets_better_all_the_time_raises_no_alarm(paired):
    generator = np.random.default_rng(7)
    way = np.sqrt(np.linspace(0, 1, 40))
    for _ in range(3):
        scores = way[:, None] + generator.normal(size=(40, 64))
        assert run(scores, 2 * way + 0.1 * generator.normal(size=40), paired=paired) == (None, None)


def test_a_real_but_small_fall_is_none():
    """3% of what was gained, measured without any doubt."""
    generator = np.random.default_rng(8)
    means = np.concatenate([np.linspace(0, 1, 20), np.full(20, 0.97)])
    scores = means[:, None] + 0.005 * generator.normal(size=(40, 64))
    assert run(scores, np.zeros(40)) == (None, None)
    means[20:] = 0.8
    assert run(means[:, None] + 0.005 * generator.normal(size=(40, 64)), np.zeros(40))[0] is not None


def test_a_collapse_is_seen_at_once():
    generator = np.random.default_rng(11)
    scores = np.where(np.arange(10) < 6, 1.0, 0.0)[:, None] + 0.3 * generator.normal(size=(10, 32))
    assert run(scores, np.full(10, 0.1)) == (6, None), "a proxy that does not move is not followed"


def test_what_the_proxy_has_never_brought_is_not_promised():
    """Gold rose while the proxy stood still; that the proxy's later rise brings nothing is no surprise."""
    generator = np.random.default_rng(12)
    gold = np.concatenate([np.linspace(0, 1, 20), np.linspace(1, 0.93, 20)])
    proxy = np.concatenate([np.zeros(20), np.linspace(0, 3, 20)]) + 0.5 * generator.normal(size=40)
    scores = gold[:, None] + 0.8 * generator.normal(size=(40, 64))
    assert run(scores, proxy) == (None, None)


def test_missing_scores_and_other_prompts():
    test = Overoptimization(paired=True)
    assert test.add(0, 0.0, [None, None]) == (Finding(), Finding()) and test.blocks == []
    test.add(1, 0.0, [1.0, None, 3.0])
    test.add(2, 0.0, [None, 5.0, 4.0])
    assert [block["gold"] for block in test.blocks] == [[1.0, 2.0, 3.0], [1.0, 5.0, 4.0]]
    test.add(3, 0.0, [1.0, 2.0])
    assert [block["step"] for block in test.blocks] == [3]


@pytest.mark.parametrize("paired", [True, False])
def test_long_runs_are_kept_short_and_still_tested(paired):
    generator = np.random.default_rng(9)
    means = np.concatenate([np.linspace(0, 1, 50), np.full(130, 1.0), np.full(20, 0.6)])
    scores = means[:, None] + 0.5 * generator.normal(size=(200, 16))
    test = Overoptimization(paired=paired)
    for i, row in enumerate(scores):
        fall, _ = test.add(i, 0.0, row.tolist())
    assert len(test.blocks) <= 64 and sum(block["looks"] for block in test.blocks) == 200
    assert test.blocks[0]["looks"] == 1 and sum(block["samples"] for block in test.blocks) == 3200
    weights = [block["looks"] for block in test.blocks]
    assert np.average([np.mean(b["gold"]) for b in test.blocks], weights=weights) == pytest.approx(scores.mean())
    assert fall.evidence > 1 and fall.gold == (pytest.approx(1.0, abs=0.1), pytest.approx(0.6, abs=0.1))


@pytest.mark.parametrize("paired", [True, False])
def test_state_goes_through_json_and_continues_identically(paired):
    generator = np.random.default_rng(10)
    scores, proxy = generator.normal(size=(30, 12)) - np.arange(30)[:, None] / 9, generator.normal(size=30)
    first = Overoptimization(paired=paired)
    drift = Drift(0.5)
    for i in range(20):
        first.add(i, proxy[i], scores[i].tolist())
        drift.add(proxy[i])
    second, other = Overoptimization(paired=paired), Drift(0.5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    other.load_state_dict(json.loads(json.dumps(drift.state_dict())))
    for i in range(20, 30):
        findings = first.add(i, proxy[i], scores[i].tolist())
        assert second.add(i, proxy[i], scores[i].tolist()) == findings
        assert other.add(proxy[i]) == drift.add(proxy[i])
    assert findings[0].z > 1
