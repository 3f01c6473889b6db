# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The command that judges pairs of answers."""

import json

from eval.quality.win_rate import main

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
        ([write(tmp_path / "a.jsonl", [{"prompt": "p", "model": "m"}]), "--gold", "m:f"], "Row 1 .* no 'baseline'"),
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
