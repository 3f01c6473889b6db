# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Accuracy and calibration of reward models, against figures worked out by hand and numpy's."""

import json
import math

import numpy as np
import pytest

from trl_ext.evaluation.reward_models import RewardModelReport, describe_reward_model

LOG3 = math.log(3.0)  # a margin of log 3 is a confidence of 3/4


def test_figures_worked_out_by_hand():
    """Margins log 3 (right twice, wrong once), 0 and -log 3 in disguise; lengths differ by +2, +2, -1, 0."""
    report = describe_reward_model([LOG3, 2 * LOG3, 0.0, 5.0], [0.0, LOG3, LOG3, 5.0], [4, 5, 1, 7], [2, 3, 2, 7])
    assert report.pairs == 4 and report.accuracy.estimate == pytest.approx(2.5 / 4)
    assert [(b.confidence, b.accuracy, b.count) for b in report.reliability] == [
        (0.5, 0.5, 1),
        (pytest.approx(0.75), pytest.approx(2 / 3), 3),
    ]
    assert report.ece == pytest.approx(3 / 4 * (0.75 - 2 / 3))
    assert report.nll == pytest.approx((2 * math.log(4 / 3) + math.log(4) + math.log(2)) / 4)
    assert report.margin_mean == pytest.approx(LOG3 / 4)
    assert report.chosen_longer == 0.5
    by_length = report.accuracy_by_length
    assert (by_length["longer"].estimate, by_length["shorter"].estimate) == (1.0, 0.0)
    assert by_length["equal"].estimate == 0.5


def test_correlations_are_numpys():
    generator = np.random.default_rng(0)
    chosen, rejected = generator.normal(size=(2, 300))
    lengths = generator.integers(1, 50, (2, 300))
    chosen += lengths[0] / 10
    rejected += lengths[1] / 10
    report = describe_reward_model(chosen.tolist(), rejected.tolist(), lengths[0].tolist(), lengths[1].tolist())
    both = np.corrcoef(np.concatenate([chosen, rejected]), lengths.ravel())[0, 1]
    assert report.length_correlation == pytest.approx(both) and both > 0.5
    assert report.margin_length_correlation == pytest.approx(
        np.corrcoef(chosen - rejected, lengths[0] - lengths[1])[0, 1]
    )
    assert sum(report.margin_counts) == 300 and len(report.margin_edges) == len(report.margin_counts) + 1
    assert sum(one.count for one in report.reliability) == 300
    low, high = report.accuracy.low, report.accuracy.high
    assert low < np.mean(chosen > rejected) < high


def test_calibration_tells_a_calibrated_model_from_a_bold_one():
    generator = np.random.default_rng(1)
    margins = generator.normal(size=4000)
    preferred = generator.random(4000) < 1 / (1 + np.exp(-margins))  # as Bradley and Terry have it
    signed = np.where(preferred, margins, -margins)
    zeros, lengths = [0.0] * 4000, [1] * 4000
    calibrated = describe_reward_model(signed.tolist(), zeros, lengths, lengths)
    bold = describe_reward_model((4 * signed).tolist(), zeros, lengths, lengths)
    assert calibrated.ece < 0.03 < 0.15 < bold.ece and calibrated.nll < bold.nll
    assert calibrated.accuracy == bold.accuracy


def test_odd_input():
    same = describe_reward_model([1.0, 1.0], [1.0, 1.0], [2, 2], [2, 2])
    assert same.accuracy.estimate == 0.5 and same.nll == pytest.approx(math.log(2))
    assert same.as_dict()["length_correlation"] is None and "NaN" not in json.dumps(same.as_dict())
    for arguments in (([], [], [], []), ([1.0], [1.0, 2.0], [1], [1]), ([math.nan], [1.0], [1], [1])):
        with pytest.raises(ValueError, match="one finite score and length a side"):
            describe_reward_model(*arguments)


def test_a_report_comes_back_from_json():
    report = describe_reward_model([1.0, 2.0, 3.0], [0.0, 2.5, 1.0], [4, 4, 4], [2, 2, 2])
    stored = json.loads(json.dumps(report.as_dict(), allow_nan=False) or "{}")
    assert stored["margin_length_correlation"] is None, "undefined, as every difference is the same"
    again = RewardModelReport.from_dict(stored | {"models": ["a"]})
    assert math.isnan(again.margin_length_correlation) and math.isnan(again.accuracy_by_length["shorter"].low)
    assert again.as_dict() == report.as_dict() and again.reliability == report.reliability
