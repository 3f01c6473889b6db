# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The plots of a reward model."""

import xml.etree.ElementTree as ElementTree

from trl_ext.evaluation.reward_models import describe_reward_model
from trl_ext.reports.reward_model import reward_model_plots


def test_plots():
    plots = reward_model_plots(describe_reward_model([1.0, 2.0, 0.1], [0.0, 3.0, 0.0], [1, 2, 3], [2, 2, 2]))
    assert [plot.slug for plot in plots] == ["reliability", "margins"]
    for plot in plots:
        ElementTree.fromstring(plot.svg)
    assert "Accuracy 66.7%" in plots[0].caption
