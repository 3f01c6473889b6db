# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import math
import xml.etree.ElementTree as ElementTree

import pytest

from trl_ext.monitoring import Alarm
from trl_ext.reports.hacking_plots import hacking_path, overoptimization_plot
from trl_ext.reports.report import write_report


def history(prefix="", steps=10, peak=5):
    """KL is the step, the proxy rises, gold falls after `peak`."""
    return [
        {
            "step": step,
            f"{prefix}kl": float(step),
            f"{prefix}reward": step / 2,
            f"{prefix}monitor/gold": 1.0 - abs(step - peak) / 10,
        }
        for step in range(1, steps + 1)
    ]


def test_the_path_is_that_of_evaluations_if_there_are_some():
    training, evaluations = history(), history("eval_", steps=4)
    assert hacking_path(training)[:, 0].tolist() == list(range(1, 11))
    path = hacking_path([*training, *evaluations, {"step": 11, "eval_kl": 3.0}])
    assert path.tolist() == [[s, pytest.approx(math.sqrt(s)), s / 2, 1 - (5 - s) / 10] for s in range(1, 5)]
    assert len(hacking_path([*training, *evaluations[:2]])) == 10
    assert hacking_path([{"step": 1, "kl": -0.5, "reward": 1.0, "monitor/gold": 0.0}])[0, 1] == 0.0


def test_one_and_two_runs_and_their_alarms():
    alarms = {"hacked": [Alarm("gold", 7, "it fell"), Alarm("divergence", 6, "it stalled")]}
    runs = {"hacked": history(), "defended <&$": history("eval_", peak=10)}
    plot = overoptimization_plot(runs, alarms)
    assert plot is not None and plot.slug == "overoptimization"
    drawing = ElementTree.fromstring(plot.svg)
    dashed = [e for e in drawing.iter() if "stroke-dasharray" in e.get("style", "")]
    assert len(dashed) >= 3, "two proxies and an alarm"
    first, second = plot.caption.split(". ", 1)[0], plot.caption
    assert "gold from 0.6 to 0.5, 1 at its best, 125% of its gain lost at the end" in first
    assert "first alarm 'divergence' at step 6." in plot.caption
    assert "defended <&$: proxy from 0.5 to 5, gold from 0.1 to 1, 1 at its best, 0% of its gain lost" in second
    assert overoptimization_plot({"one": history()}) is not None


def test_without_data_or_with_too_many_runs():
    assert overoptimization_plot({"empty": [{"step": 1, "kl": 1.0, "reward": 2.0}]}) is None
    with pytest.raises(ValueError, match="3 runs"):
        overoptimization_plot({"a": [], "b": [], "c": []})


def test_it_goes_into_the_report(tmp_path):
    plots = [overoptimization_plot({"run": history()}), None]
    page = write_report(tmp_path / "r.html", title="t", log_history=history(), extra_plots=plots)
    assert page.read_text().count('id="plot-overoptimization"') == 1  # the log alone would also draw it
