# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import json
import math

import numpy as np
import pytest

from eval.quality.win_rate import bootstrap_win_rate, by_category, count, main, win_rate
from trl_ext.evaluation.intervals import wilson


def test_wilson_intervals_of_the_literature():
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3."""
    for successes, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson(successes, total)
        assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert wilson(20, 20).high == 1.0 and wilson(20, 20).low == pytest.approx(1 - 0.1611, abs=5e-5)
    wider = wilson(81, 263, confidence=0.99)
    assert wider.low < 0.2553 and wider.high > 0.3662
    assert math.isnan(wilson(0, 0).estimate)


def test_a_tie_is_half_a_win():
    assert win_rate(6, 2, 2).estimate == 0.7 and win_rate(0, 0, 5).estimate == 0.5
    assert win_rate(6, 2, 2) == wilson(7, 10)


def test_the_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered, narrower = [0, 0], []
    for _ in range(200):
        outcomes = generator.choice([1, -1, 0], size=60, p=[0.5, 0.2, 0.3]).tolist()  # a win rate of 0.65
        intervals = [count(outcomes).rate, bootstrap_win_rate(outcomes, num_resamples=200)]
        for i, interval in enumerate(intervals):
            covered[i] += interval.low <= 0.65 <= interval.high
        narrower.append((intervals[1].high - intervals[1].low) / (intervals[0].high - intervals[0].low))
    assert covered[0] >= 186 and covered[1] >= 178
    assert np.mean(narrower) < 0.95


def test_counts_and_categories():
    outcomes = [1, 0, None, -1, 1]
    total = count(outcomes)
    assert (total.wins, total.losses, total.ties, total.left_out) == (2, 1, 1, 1)
    assert total.as_dict()["win_rate"]["estimate"] == 0.625
    table = by_category(outcomes, ["b", "a", "b", "a", "b"])
    assert list(table) == ["b", "a"] and table["b"].rate.estimate == 1.0 and table["b"].left_out == 1
    assert (table["a"].ties, table["a"].losses) == (1, 1)
    assert math.isnan(bootstrap_win_rate([None]).estimate)
    with pytest.raises(ValueError, match="5 comparisons and 1 categories"):
        by_category(outcomes, ["a"])
    with pytest.raises(ValueError, match="-1 wins"):
        win_rate(-1, 2)


ROWS = [
    {"prompt": "1+1", "model": "2", "baseline": "3", "answer": "2", "kind": "sum"},
    {"prompt": "2+1", "model": "4", "baseline": "3", "answer": "3", "kind": "sum"},
    {"prompt": "2*2", "model": "4", "baseline": "4", "answer": "4", "kind": "product"},
    {"prompt": "2*3", "model": "6", "baseline": "5", "answer": "6", "kind": "product"},
]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_judge.py").write_text(
        "def gold(completions, answer, **columns):\n    return [float(c == a) for c, a in zip(completions, answer)]\n"
    )
    source = write(tmp_path / "completions.jsonl", ROWS)
    arguments = [source, "--gold", "my_judge:gold", "--category_column", "kind", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "62.5%" in shown and "product" in shown and "win_rate.json" in shown
    results = json.loads((tmp_path / "out" / "win_rate.json").read_text())
    assert results["outcomes"] == [1, -1, 0, 1] and results["all"]["wins"] == 2
    assert results["all"]["win_rate"]["estimate"] == results["all"]["bootstrap"]["estimate"] == 0.625
    assert results["categories"]["sum"]["win_rate"]["estimate"] == 0.5
    assert results["categories"]["product"]["win_rate"]["estimate"] == 0.75


def test_errors_on_the_command_line(tmp_path, capsys):
    source = write(tmp_path / "ok.jsonl", ROWS)
    for arguments, message in (
        ([str(tmp_path / "none.jsonl"), "--gold", "m:f"], "cannot be read"),
        ([write(tmp_path / "a.jsonl", [{"prompt": "p", "model": "m"}]), "--gold", "m:f"], "Row 1 .* no ['baseline']"),
        ([write(tmp_path / "b.jsonl", []), "--gold", "m:f"], "is empty"),
        ([source, "--gold", "no_such_module:f"], "--gold no_such_module:f is not to be found"),
        ([source, "--gold", "math:no_such_function"], "is not to be found"),
        ([source, "--endpoint", "http://localhost:1"], "--endpoint needs --endpoint_model"),
        ([source, "--endpoint", "localhost", "--endpoint_model", "m"], "must begin with http"),
        ([source, "--gold", "math:prod", "--category_column", "topic"], "without the column 'topic'"),
    ):
        assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert all(part in error for part in message.split(" .* ")), error
