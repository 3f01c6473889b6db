# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext check-reward`: reports, exit statuses and the samples that a reward is tried on."""

import json

import pytest

from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier
from trl_ext.commands.check_reward import main

REWARDS = """
def letters(completions, **columns):
    return [float(len(text if isinstance(text, str) else text[0]["content"])) for text in completions]

def constant(completions, **columns):
    return [1.0 for _ in completions]

def one(completions, **columns):
    return [1.0]

def divides(completions, **columns):
    return [1 / len(text) for text in completions]

def exact(completions, answer, **columns):
    return [float(text == right) for text, right in zip(completions, answer)]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "lm", tiny_causal_lm())
    save_tiny(folder / "classifier", tiny_classifier())
    (folder / "scores.py").write_text(REWARDS)
    rows = [{"prompt": f"the cat {i}", "completion": "x" * i, "answer": "xx"} for i in range(5)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def check(world, spec: str, *options: object) -> int | str | None:
    """The exit status for a function of the file, or for another spec."""
    spec = spec if ":" in spec else f"{world / 'scores.py'}:{spec}"
    try:
        main([spec, *map(str, options)])
    except SystemExit as end:
        return end.code
    return 0


def test_a_reward_is_reported_with_its_spread(world, capsys):
    assert check(world, "letters", "--prompt", "p", "--completion", "a", "--completion", "bbb") == 0
    out = capsys.readouterr().out
    assert "letters can be used; the completions are given." in out and "accepts: texts\n" in out
    assert "rewards: mean 2, standard deviation 1, from 1 to 3\n" in out and "ms a sample" in out
    assert "warning" not in out


def test_stock_samples_of_both_formats(world, capsys):
    assert check(world, f"toxicity:{world / 'classifier'}") == 0
    out = capsys.readouterr().out
    assert "accepts: texts and conversations" in out and "The weather today is" in out
    assert "stock texts (`--dataset_name` gives prompts and columns of your own)" in out


def test_doubts_are_warnings(world, capsys):
    assert check(world, "constant") == 0
    assert "gives all samples the same reward" in capsys.readouterr().out
    assert check(world, "divides") == 0  # on conversations, whose length is 1
    assert "warning: It fails on texts: line 12 of 'scores.py' raises ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("one", [], "returned 1 rewards for 4 completions"),
        ("divides", ["--prompt", "a", "--completion", ""], "line 12 of 'scores.py' raises ZeroDivisionError"),
        ("exact", [], "asks for ['answer']"),
        ("exact", [], "Prompts and columns of your own: `--dataset_name`."),
    ],
)
def test_a_broken_reward_is_status_1(world, capsys, spec, options, message):
    assert check(world, spec, *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_rows_of_a_data_set_with_their_columns(world, capsys):
    assert check(world, "exact", "--dataset_name", world / "rows.jsonl") == 0
    out = capsys.readouterr().out
    assert "rewards: mean 0.2" in out and "of the column 'completion'" in out
    assert check(world, "exact", "--dataset_name", world / "rows.jsonl", "--completion_column", "no") == 0
    assert "stock texts, as there is no column 'no'" in capsys.readouterr().out


def test_completions_of_a_model(world, capsys):
    (world / "lm" / "ppo_config.json").write_text('{"max_completion_length": 4}')
    options = ["--dataset_name", world / "rows.jsonl", "--num_samples", 3, "--model", world / "lm"]
    assert check(world, "letters", *options) == 0
    out = capsys.readouterr().out
    assert f"sampled from '{world / 'lm'}'" in out and out.count("the cat") == 3


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("letter", [], "did you mean `letters`?"),
        ("nothing.py:f", [], "there is no file 'nothing.py'"),
        ("letters", ["--prompt", "a"], "`--prompt` and `--completion` make a sample together"),
        ("letters", ["--num_samples", 0], "`--num_samples` is 0"),
        ("letters", ["--model", "x"], "give it too"),
        ("letters", ["--dataset_name", "./no.jsonl"], "'./no.jsonl' does not exist"),
        ("letters", [*["--prompt", "a"] * 2, *["--completion", "b"] * 3], "There are 2 `--prompt` for 3"),
    ],
)
def test_input_that_is_not_found_is_status_2(world, capsys, spec, options, message):
    assert check(world, spec, *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
