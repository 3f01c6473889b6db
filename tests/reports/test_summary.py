# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The summary as JSON."""

import json
import math

from trl_ext.reports.summary import write_summary


def test_summary_is_json_that_everybody_reads(tmp_path):
    write_summary(tmp_path / "summary.json", {"kl": math.inf, "ci": [math.nan, 1.0], "seconds": {"train": 2.0}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"kl": None, "ci": [None, 1], "seconds": {"train": 2}}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
