# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from trl_ext.monitoring.metrics import MetricBuffer, finite


def test_weighted_mean_by_hand():
    buffer = MetricBuffer()
    buffer.add("entropy", 2.0, weight=30)
    buffer.add("entropy", 4.0, weight=10)
    buffer.update({"kl": 1.0, "reward": -3.0})
    buffer.update({"kl": 2.0, "reward": 0.0}, weight=3)
    assert buffer.flush() == {"entropy": 2.5, "kl": 1.75, "reward": -0.75}


def test_mean_agrees_with_numpy():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=200), rng.integers(1, 50, size=200)
    buffer = MetricBuffer()
    for value, weight in zip(values, weights, strict=True):
        buffer.add("x", value, weight)
    assert buffer.flush()["x"] == pytest.approx(np.average(values, weights=weights), abs=1e-12)


def test_constant_is_logged_exactly():
    buffer = MetricBuffer()
    for weight in (1, 3, 7, 11, 0.3):
        buffer.add("kl_coef", 0.1, weight)
    assert buffer.flush()["kl_coef"] == 0.1


def test_extremes_follow_the_last_part_of_the_name():
    buffer = MetricBuffer()
    for value in (1.0, 5.0, 3.0):
        buffer.update({"ratio/max": value, "ratio/min": value, "max": value, "maximum": value, "max/mean": value})
    assert buffer.flush() == {"ratio/max": 5.0, "ratio/min": 1.0, "max": 5.0, "maximum": 3.0, "max/mean": 3.0}


def test_nan_erases_nothing():
    buffer = MetricBuffer()
    for value in (math.nan, 1.0, math.nan, 3.0):
        buffer.update({"reward": value, "ratio/max": value, "undefined": math.nan})
    assert buffer.flush() == {"reward": 2.0, "ratio/max": 3.0}


@pytest.mark.parametrize("values", [(math.inf, 1.0, 2.0), (1.0, math.inf, 2.0), (1.0, 2.0, math.inf)])
def test_infinity_stays_visible(values: tuple[float, ...]):
    buffer = MetricBuffer()
    for value in values:
        buffer.add("value_loss", value)
    assert buffer.flush() == {"value_loss": math.inf}


def test_zero_weight_counts_for_nothing():
    buffer = MetricBuffer()
    buffer.update({"a": 9.0, "b/max": 9.0}, weight=0)
    buffer.update({"a": 1.0, "b/max": 1.0})
    buffer.update({"a": 9.0, "b/max": 9.0}, weight=0)
    assert buffer.flush() == {"a": 1.0, "b/max": 1.0}


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_impossible_weight_is_refused(weight: float):
    with pytest.raises(ValueError, match="'kl'.*finite weight"):
        MetricBuffer().add("kl", 1.0, weight)


def test_takes_tensors_and_returns_floats_in_order_of_arrival():
    buffer = MetricBuffer()
    buffer.add("z", torch.tensor(2.0), weight=torch.tensor(3))
    buffer.add("a", np.float32(0.5))
    buffer.add("z", torch.tensor([2.0], dtype=torch.bfloat16))
    metrics = buffer.flush()
    assert list(metrics.items()) == [("z", 2.0), ("a", 0.5)]
    assert {type(value) for value in metrics.values()} == {float}


def test_flush_starts_anew():
    buffer = MetricBuffer()
    buffer.add("reward", 5.0)
    assert len(buffer) == 1
    buffer.flush()
    assert len(buffer) == 0
    buffer.add("reward", 1.0)
    assert buffer.flush() == {"reward": 1.0}


@pytest.mark.parametrize("interrupted_after", [0, 1, 17, 59, 60])
def test_resumed_run_logs_the_same_numbers(interrupted_after: int):
    rng = np.random.default_rng(1)
    steps = [
        ({"z/max": v, "kl": v / 3, "a/min": -v, "big": v * 1e300}, w)
        for v, w in zip(rng.normal(size=60), rng.random(60), strict=True)
    ]
    uninterrupted, resumed = MetricBuffer(), MetricBuffer()
    for index, (metrics, weight) in enumerate(steps):
        if index == interrupted_after:
            resumed = _through_json(resumed)
        for buffer in (uninterrupted, resumed):
            buffer.update(metrics, weight)
    resumed = _through_json(resumed)
    assert list(resumed.flush().items()) == list(uninterrupted.flush().items())


def test_loading_replaces_the_content():
    buffer = MetricBuffer()
    buffer.add("stale", 1.0)
    buffer.load_state_dict(MetricBuffer().state_dict())
    assert buffer.flush() == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), ("2.5", 2.5), (None, None), ("x", None), (math.nan, None), (-math.inf, None), (10**400, None)],
)
def test_finite(value: Any, expected: float | None):
    assert finite(value) == expected


def _through_json(buffer: MetricBuffer) -> MetricBuffer:
    # Sorted keys are how transformers writes the state of its callbacks.
    restored = MetricBuffer()
    restored.load_state_dict(json.loads(json.dumps(buffer.state_dict(), sort_keys=True)))
    return restored
