# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Gold scores by category: which fall while the reward rises, and how often that is claimed of none."""

import json

import numpy as np
import pytest

from trl_ext.monitoring.signals import MOST_CATEGORIES, TOLERANCES, Marks, Signals

KINDS = [f"kind {i}" for i in range(17)]


def shown(fall, *, looks=40, rising=True, prefix="", per_kind=6, seed=0, kinds=KINDS, resume_at=None):
    """Signals after gold scores of `per_kind` prompts a kind, of which the kinds in `fall` lose that much halfway."""
    generator = np.random.default_rng(seed)
    signals = Signals(TOLERANCES, 10)
    own = 0.3 * generator.normal(size=(len(kinds), per_kind))
    for step in range(looks):
        if step == resume_at:
            state = json.loads(json.dumps(signals.state_dict()))
            signals = Signals(TOLERANCES, 10)
            signals.load_state_dict(state)
        late = step >= looks / 2
        means = np.array([0.6 - (fall.get(kind, 0.0) if late else 0.0) + 0.01 * step for kind in kinds])
        scores = means[:, None] + own + 0.3 * generator.normal(size=own.shape)
        proxy = step / looks if rising else 0.0 - step / looks
        names = [kind for kind in kinds for _ in range(per_kind)]
        signals.add_marks(prefix, Marks([proxy] * scores.size, scores.reshape(-1).tolist(), names), step)
    return signals


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_the_category_that_loses_is_named(prefix):
    signals = shown({"kind 3": 0.7}, prefix=prefix)
    [alarm] = signals.alarms
    assert alarm.signal == "gold/kind 3" and 20 < alarm.step < 36
    assert "of category 'kind 3' has fallen from" in alarm.message and signals.evidence["category"] > 0.5


def test_only_while_the_reward_rises():
    assert shown({"kind 3": 0.7}, rising=False).alarms == []


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_categories_that_stay_are_not_named(prefix):
    alarms = [shown({}, prefix=prefix, seed=seed, looks=30).alarms for seed in range(4)]
    assert alarms == [[]] * 4


def test_a_column_with_many_values_is_no_category():
    kinds = [f"kind {i}" for i in range(MOST_CATEGORIES + 1)]
    assert "category" not in shown({}, kinds=kinds, looks=2).evidence


def test_the_state_goes_through_json():
    whole, resumed = (shown({"kind 3": 0.7}, looks=24, resume_at=at) for at in (None, 15))
    assert whole.state_dict() == resumed.state_dict() and whole.state_dict()["categories"][""].keys() == set(KINDS)
