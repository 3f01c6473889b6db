# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Bad YAML files of the recipes: each is answered by one line that names the option and the file."""

from pathlib import Path

import pytest

from recipes import detoxification
from tests.bad_inputs.case import Case, check, table

JSON = "a mapping (on the command line JSON, '{\"name\": value}')"
FILE = "The file 'bad.yaml'"


def row(name: str, content: str | bytes, message: str) -> Case:
    """A file `bad.yaml` in the current directory with this content."""

    def call() -> object:
        written = content if isinstance(content, bytes) else content.encode()
        Path("bad.yaml").write_bytes(written)
        return detoxification.make_parser().parse(["--config", "bad.yaml"])

    return Case(name, call, ValueError, message)


def wrong(key: str, written: str, expected: str, given: str) -> Case:
    """A value that is none of this option's."""
    name = f"{key}: {written}"
    return row(name, f"{key}: {written}\n", f"`{key}` in 'bad.yaml' must be {expected}, got {given}.")


CASES = [
    # values
    wrong("kl_coef", "[0.1]", "a number", "a list"),
    wrong("kl_coef", "{start: 0.1}", "a number", "a mapping"),
    wrong("kl_coef", "abc", "a number", "'abc'"),
    wrong("kl_coef", "true", "a number", "'true'"),
    wrong("kl_coef", "0,1", "a number", "'0,1'"),
    wrong("kl_coef", ".nan", "a number", "'nan'"),
    wrong("kl_coef", "'ten'", "a number", "'ten'"),
    wrong("num_ppo_epochs", "1.0", "a whole number", "'1.0'"),
    wrong("num_ppo_epochs", "1e1", "a whole number", "'1e1'"),
    wrong("num_ppo_epochs", "yes", "a whole number", "'yes'"),
    wrong("num_ppo_epochs", "two", "a whole number", "'two'"),
    wrong("num_ppo_epochs", "''", "a whole number", "''"),
    wrong("total_episodes", "1_000.5", "a whole number", "'1_000.5'"),
    wrong("use_peft", "on", "true or false", "'on'"),
    wrong("use_peft", "maybe", "true or false", "'maybe'"),
    wrong("use_peft", "[true]", "true or false", "a list"),
    wrong("bf16", "3", "true or false", "'3'"),
    wrong("kl_controller", "[pid]", "one of fixed, adaptive, pid, scheduled", "a list"),
    wrong("toxicity_output", "{logit: 1}", "one of logit, log_odds, probability", "a mapping"),
    wrong("dataset_name", "[a.jsonl, b.jsonl]", "a text", "a list"),
    wrong("dataset_name", "{train: a.jsonl}", "a text", "a mapping"),
    wrong("stop_strings", "[a, null]", "a list of texts", "an empty element"),
    wrong("stop_strings", "[[a]]", "a list of texts", "a list or mapping in it"),
    wrong("stop_strings", "{a: 1}", "a list of texts", "a mapping"),
    wrong("reward_weights", "[1, one]", "a list of numbers", "'one'"),
    wrong("reward_weights", "[1, .nan]", "a list of numbers", "'nan'"),
    wrong("model_init_kwargs", "foo", JSON, "another text"),
    wrong("model_init_kwargs", "'{\"token\": \"hf_secret\"'", JSON, "another text"),
    wrong("model_init_kwargs", "[1]", JSON, "a list"),
    wrong("hub_token", "[hf_secret]", "a text", "a list"),
    row(
        "a literal with a slip",
        "kl_controller: pidd\n",
        "`kl_controller` in 'bad.yaml' must be one of fixed, adaptive, pid, scheduled, got 'pidd'; did you mean 'pid'?",
    ),
    row(
        "a strategy with a slip",
        "save_strategy: epochs\n",
        "`save_strategy` in 'bad.yaml' must be one of no, steps, epoch, best, got 'epochs'; did you mean 'epoch'?",
    ),
    row("null", "kl_coef: null\n", "`kl_coef` in 'bad.yaml' has no value; it must be a number."),
    row("no value", "num_mini_batches:\n", "`num_mini_batches` in 'bad.yaml' has no value; it must be a whole number."),
    row("a tilde", "use_peft: ~\n", "`use_peft` in 'bad.yaml' has no value; it must be true or false."),
    row("out of range", "kl_coef: -1\n", "`kl_coef` must be 0 or more, got -1.0 (in 'bad.yaml')."),
    row("own range", "num_eval_prompts: 0\n", "`num_eval_prompts` must be at least 1, got 0 (in 'bad.yaml')."),
    row(
        "sizes",
        "num_mini_batches: 7\n",
        "`num_mini_batches` 7 does not divide `per_device_train_batch_size` 64 x `gradient_accumulation_steps` 4 = 256 "
        "completions per rollout; choose a divisor of 256 (in 'bad.yaml').",
    ),
    row(
        "a combination",
        "kl_controller: scheduled\n",
        "`kl_controller='scheduled'` needs `kl_coef_end` (Final coefficient of a schedule) (in 'bad.yaml').",
    ),
    # keys
    row(
        "a key with a slip",
        "learning_rat: 1.0e-3\n",
        "Unknown key `learning_rat`: did you mean `learning_rate` or `critic_learning_rate`? (in 'bad.yaml').",
    ),
    row("a key like no other", "qqqqqq: 1\n", "Unknown key `qqqqqq`: `--help` lists all of them (in 'bad.yaml')."),
    row("a key in capitals", "KL_COEF: 1\n", "Unknown key `KL_COEF`: did you mean `kl_coef`? (in 'bad.yaml')."),
    row(
        "TRL's key",
        "response_length: 53\n",
        "Unknown key `response_length`: use `max_completion_length` (in 'bad.yaml').",
    ),
    row(
        "TRL's reward model",
        "reward_model_path: x\n",
        "Unknown key `reward_model_path`: use `toxicity_model` (in 'bad.yaml').",
    ),
    row(
        "a key twice",
        "kl_coef: 1\nvf_coef: 1\nkl_coef: 2\n",
        f"{FILE} has `kl_coef` twice, the last time in line 3; keep one of them.",
    ),
    row(
        "a nested key twice",
        "model_init_kwargs: {a: 1, a: 2}\n",
        f"{FILE} has `a` twice, the last time in line 1; keep one of them.",
    ),
    row("a key that is a list", "? [a]\n: 1\n", f"{FILE} has a key in line 1 that is no text."),
    row("env", "env: 3\n", "`env` in 'bad.yaml' must be a mapping of variables to texts."),
    row("nested env", "env: {A: [1]}\n", "`env` in 'bad.yaml' must be a mapping of variables to texts."),
    # files
    row("an empty file", "", f"{FILE} is empty; write one `option: value` a line."),
    row("only comments", "# kl_coef: 1\n", f"{FILE} is empty; write one `option: value` a line."),
    row(
        "a list",
        "- kl_coef\n- vf_coef\n",
        f"{FILE} must contain a YAML mapping of options to values, `option: value`.",
    ),
    row("a text", "kl_coef 1\n", f"{FILE} must contain a YAML mapping of options to values, `option: value`."),
    row(
        "two documents",
        "kl_coef: 1\n---\nkl_coef: 2\n",
        f"{FILE} is not valid YAML, line 2: a second document begins here; keep one.",
    ),
    row(
        "a tab",
        "model_init_kwargs:\n\tdtype: auto\n",
        f"{FILE} is not valid YAML, line 2: a tab stands here; indent with spaces.",
    ),
    row(
        "an open bracket",
        "stop_strings: [a\n",
        f"{FILE} is not valid YAML, line 2: expected ',' or ']', but got '<stream end>'.",
    ),
    row(
        "two values in a line",
        "kl_coef: 1 vf_coef: 2\n",
        f"{FILE} is not valid YAML, line 1: mapping values are not allowed here.",
    ),
    row(
        "a tag that runs code",
        "kl_coef: !!python/object/apply:os.system [exit]\n",
        f"{FILE} has the tag !!python/object/apply:os.system in line 1; only plain values are read.",
    ),
    row("a tag of one's own", "kl_coef: !x 1\n", f"{FILE} has the tag !x in line 1; only plain values are read."),
    row(
        "a name of Python",
        "kl_coef: !!python/name:os.system ''\n",
        f"{FILE} has the tag !!python/name:os.system in line 1; only plain values are read.",
    ),
    row(
        "an alias of itself",
        "stop_strings: &a [*a]\n",
        f"{FILE} is not valid YAML, line 1: an alias refers to itself.",
    ),
    row("Latin-1", b"run_name: caf\xe9\n", f"{FILE} is not UTF-8 text (byte 14); save it as UTF-8."),
    row("UTF-16", "kl_coef: 1".encode("utf-16"), f"{FILE} is not UTF-8 text (byte 1); save it as UTF-8."),
    row("NUL", b"kl_coef: 1\x00\n", f"{FILE} is not text: character 11 is not printable."),
]  # fmt: skip


@table(CASES)
def test_a_bad_file_is_answered_in_one_line(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(case)


@pytest.mark.parametrize(
    ("written", "field", "value"),
    [
        ("learning_rate: 1e-3", "learning_rate", 1e-3),  # a text to YAML 1.1
        ("kl_coef: '0.25'", "kl_coef", 0.25),
        ("reward_clip_range: [-.inf, 1]", "reward_clip_range", [-float("inf"), 1.0]),
        ("max_ratio: null", "max_ratio", None),
        ("missing_eos_penalty: none", "missing_eos_penalty", None),
        ("save_strategy: no", "save_strategy", "no"),  # false to YAML 1.1
        ("run_name: 010", "run_name", "010"),  # 8 to YAML 1.1
        ("run_name: 2026-11-26", "run_name", "2026-11-26"),
        ("use_cpu: yes", "use_cpu", True),
        ("use_cpu: 'true'", "use_cpu", True),
        ("stop_strings: a", "stop_strings", ["a"]),
        ("reward_weights: [1, 2]", "reward_weights", [1.0, 2.0]),
        ("model_init_kwargs: {low_cpu_mem_usage: true}", "model_init_kwargs", {"low_cpu_mem_usage": True}),
        ("<<: {kl_coef: 0.3}", "kl_coef", 0.3),
        ("vf_coef: &a 0.4\nkl_coef: *a", "kl_coef", 0.4),
        ("\ufeffkl_coef: 0.5", "kl_coef", 0.5),
    ],
)
def test_good_values_mean_what_they_mean_on_the_command_line(written, field, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(written + "\n", encoding="utf-8")
    args = detoxification.make_parser().parse(["--config", "good.yaml"])[-2]
    assert getattr(args, field) == value
