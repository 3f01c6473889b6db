# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The summary as JSON."""

import json
import math
from pathlib import Path

import pytest

from trl_ext.reports import Report
from trl_ext.reports.runs import write_run
from trl_ext.reports.summary import write_summary


def test_summary_is_json_that_everybody_reads(tmp_path):
    write_summary(tmp_path / "summary.json", {"kl": math.inf, "ci": [math.nan, 1.0], "seconds": {"train": 2.0}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"kl": None, "ci": [None, 1], "seconds": {"train": 2}}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("value", [0.1, 0.3, None])
def test_the_goals_are_in_the_summary(value: float | None, tmp_path: Path) -> None:
    report = Report("t", summary={"toxicity_after": value}, thresholds={"toxicity_after": ("<=", 0.2)})
    write_run(tmp_path, report)
    goal = {"value": value, "relation": "<=", "limit": 0.2, "passed": value == 0.1}
    assert json.loads((tmp_path / "summary.json").read_text())["goals"] == {"toxicity_after": goal}
    write_run(tmp_path, Report("t", summary={}))
    assert "goals" not in json.loads((tmp_path / "summary.json").read_text())
