# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The record of a recipe's options: files by their whole paths, and nothing else changed."""

from pathlib import Path

import pytest

from trl_ext.instructions.options import RunOptions
from trl_ext.running.prompts import PromptOptions
from trl_ext.running.records import _absolute, read_record, rebuilt


def test_only_names_of_files_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("eval", "lm"):
        Path(folder).mkdir()
    for file in ("data.jsonl", "mine.py"):
        Path(file).touch()
    given = {"stages": ["eval"], "model_name_or_path": "lm", "dataset_name": "data.jsonl", "eval_split": "eval"}
    given["reward"] = ["mine.py:brevity", "toxicity:lm", "org/name", "https://host:1/lm"]
    assert _absolute(given) == {
        "stages": ["eval"],
        "model_name_or_path": f"{tmp_path}/lm",
        "dataset_name": f"{tmp_path}/data.jsonl",
        "eval_split": "eval",
        "reward": [f"{tmp_path}/mine.py:brevity", f"toxicity:{tmp_path}/lm", "org/name", "https://host:1/lm"],
    }


def test_options_come_back_as_they_were() -> None:
    record = {"options": {"RunOptions": {"stages": ["eval"], "of_a_later_version": 1}}}
    assert rebuilt(RunOptions, record) == RunOptions(stages=["eval"])
    assert rebuilt(PromptOptions, record) == PromptOptions()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"recipe": "detox"}'])
def test_a_record_that_cannot_be_read_is_refused(content: str, tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(ValueError, match="cannot be read as a record of a recipe"):
        read_record(tmp_path)
