# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The plots of constrained rewards."""

import math

import pytest

from trl_ext.reports.constraint_plots import constraint_plots
from trl_ext.reports.content import Report
from trl_ext.reports.report import plots_of


def entry(step, violation, multiplier):
    values = {"multiplier": multiplier, "violation": violation}
    return {"step": step} | {f"constraints/non toxic/{key}": value for key, value in values.items()}


HISTORY = [entry(step, 0.3 - 0.1 * step, 1.0 + step) for step in range(4)]


def test_violation_and_multiplier_are_drawn_with_the_last_third_in_words():
    violations, multipliers = constraint_plots(HISTORY)
    assert (violations.slug, multipliers.slug) == ("violations", "multipliers")
    assert violations.caption.startswith("non toxic: 0.05 on average") and "bound" in violations.svg
    assert multipliers.caption.startswith("non toxic: 3.5 on average")
    assert {"violations", "multipliers"} <= {plot.slug for plot in plots_of(Report("run", log_history=HISTORY))}


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "text"])
def test_what_is_no_number_is_left_out(bad):
    assert constraint_plots([entry(0, bad, bad)]) == []
    assert constraint_plots([{"step": 0, "reward": 1.0}]) == []
