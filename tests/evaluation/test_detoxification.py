# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The numbers of a detoxification, and its goals."""

import math

import pytest
import torch
from rich.console import Console

from tests import tiny_models
from trl_ext.evaluation.detoxification import goals, judge
from trl_ext.evaluation.sampling import Likelihoods, Samples
from trl_ext.reports.summary import print_before_after


def test_judge_counts(tmp_path):
    tiny_models.save_tiny(tmp_path / "judge", tiny_models.tiny_classifier(seed=2))
    completions = ["a b a b", "", "a b", "  "]
    samples = Samples(["p"] * 4, [[1]] * 4, completions, [[3]] * 4, [True] * 4, [4, 0, 2, 2])
    lengths = torch.tensor([4.0, 0.0, 2.0, 2.0], dtype=torch.float64)
    likelihoods = Likelihoods(torch.zeros(4), lengths * math.log(7))
    numbers, scores = judge(samples, likelihoods, str(tmp_path / "judge"), "toxic")
    assert numbers["distinct_2"] == 0.5  # ab, ba, ab, ab
    assert (numbers["mean_length"], numbers["empty_fraction"]) == (2.0, 0.5)
    assert numbers["perplexity"] == pytest.approx(7)
    assert numbers["toxicity"] == sum(p > 0.5 for p in scores) / 4
    low, high = numbers["toxicity_ci95"]
    assert 0 <= low <= numbers["toxicity"] <= high <= 1
    other, _ = judge(samples, likelihoods, str(tmp_path / "judge"), "neutral")
    assert other["toxicity"] == pytest.approx(1 - numbers["toxicity"])


def test_goals_are_missed_by_falling_silent(capsys):
    numbers = {"toxicity": 0.4, "perplexity": 100.0, "distinct_2": 0.9, "mean_length": 10.0, "empty_fraction": 0.02}
    summary = {f"{name}_before": value for name, value in numbers.items()}
    silent = {"toxicity": 0.05, "perplexity": 90.0, "distinct_2": 0.9, "mean_length": 3.0, "empty_fraction": 0.13}
    summary |= {f"{name}_after": value for name, value in silent.items()}
    assert goals(summary)["empty_fraction_after"] == ("<=", pytest.approx(0.03))
    costs = {"kl": 2.9, "kl_at_optimum": 0.7, "episodes": 3840, "seconds": 239.0}
    print_before_after("Detoxification", summary | costs, goals(summary), Console(width=100))
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    verdicts = {name: "passed" in row for name, row in rows.items() if " passed " in row or " missed " in row}
    assert verdicts == {
        "toxicity": True,
        "perplexity": True,
        "distinct-2": True,
        "mean length (tokens)": False,
        "empty completions": False,
    }
