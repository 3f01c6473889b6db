# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The record of a recipe's options: files and folders are found again, and nothing else changes."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from trl import ModelConfig

from trl_ext.config import PPOConfig
from trl_ext.files import write_json
from trl_ext.folders import found_again, portable
from trl_ext.instructions.options import RunOptions
from trl_ext.running.named_rewards import warn_of_training_reward
from trl_ext.running.prompts import PromptOptions
from trl_ext.running.records import read_record, rebuilt, write_record

GIVEN = {"category_column": "lm", "eval_split": "eval", "dataset_name": "data.jsonl"}
REWARDS = ["mine.py:brevity", "toxicity:lm", "org/name", "https://host:1/lm", "package.module:eval"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run beside what it refers to; the record was written from there."""
    here = tmp_path / "project"
    for folder in ("eval", "lm", "copy", "out"):
        (here / folder).mkdir(parents=True)
    for file in ("data.jsonl", "mine.py"):
        (here / file).touch()
    monkeypatch.chdir(here)
    args = PPOConfig(output_dir="out", report_to="none", use_cpu=True, critic="copy", reward_adapters=["lm"])
    model = ModelConfig(model_name_or_path=str(here / "lm"))
    write_record(here / "out", "ppo", args, (PromptOptions(**GIVEN), Rewards(REWARDS), model))
    return here / "out"


@dataclass
class Rewards:
    reward: list[str]


def places(out: Path) -> dict[str, Any]:
    record = read_record(out)
    assert record is not None
    options = {name: value for part in record["options"].values() for name, value in part.items()}
    return {name: options[name] for name in (*GIVEN, "reward", "model_name_or_path")} | {
        name: record["args"][name] for name in ("critic", "reward_adapters")
    }


def expected(root: Path, model: Path) -> dict[str, Any]:
    return {
        **GIVEN,
        "dataset_name": f"{root}/data.jsonl",
        "reward": [f"{root}/mine.py:brevity", f"toxicity:{root}/lm", *REWARDS[2:]],
        "model_name_or_path": f"{model}/lm",
        "critic": "copy",
        "reward_adapters": [f"{root}/lm"],
    }


def test_files_are_found_from_anywhere_and_where_everything_was_moved(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run.parent
    monkeypatch.chdir("/")
    assert places(run) == expected(here, here)
    here.rename(tmp_path / "elsewhere")
    assert places(tmp_path / "elsewhere" / "out") == expected(tmp_path / "elsewhere", tmp_path / "elsewhere")


def test_files_are_found_where_the_run_alone_was_moved(run: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    run.rename(tmp_path / "far" / "away" / "out")
    assert places(tmp_path / "far" / "away" / "out") == expected(run.parent, run.parent), "from the same folder"


def test_no_folder_of_the_machine_is_written_that_was_not_typed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (run / "recipe.json").read_text()
    assert str(run.parent) not in text.replace(f"{run.parent}/lm", ""), "the model was named by its whole path"
    monkeypatch.setenv("HOME", str(run.parent))
    assert portable(str(run.parent / "lm"), run) == ("~/lm", "../lm")
    assert found_again("~/lm", "../gone", run) == f"{run.parent}/lm"


def test_options_come_back_as_they_were() -> None:
    record = {"options": {"RunOptions": {"stages": ["eval"], "of_a_later_version": 1}}}
    assert rebuilt(RunOptions, record) == RunOptions(stages=["eval"])
    assert rebuilt(PromptOptions, record) == PromptOptions()


@pytest.mark.parametrize(
    ("recipe", "options", "judge"),
    [
        ("ppo", {"reward": ["my.py:f", "toxicity:org/model"]}, "./my.py:f"),
        ("ppo", {"reward": ["my.py:f", "toxicity:org/model"]}, "toxicity:org/model"),
        ("detox", {"toxicity_model": "org/model"}, "toxicity:org/model"),
        ("instruct", {}, "preference:out/reward"),
    ],
)
def test_a_judge_that_is_the_reward_of_the_run_is_warned_of(
    recipe: str, options: dict[str, Any], judge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.py").touch()
    Path("out/reward").mkdir(parents=True)
    write_json(Path("out/recipe.json"), {"recipe": recipe, "model": ".", "options": {"A": options}, "args": {}})
    with pytest.warns(UserWarning, match="`--judge` is the reward that 'out' was trained on"):
        warn_of_training_reward("judge", judge, Path("out"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_training_reward("judge", "toxicity:org/another", Path("out"))
        warn_of_training_reward("judge", judge, tmp_path)  # no run


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"recipe": "detox"}'])
def test_a_record_that_cannot_be_read_is_refused(content: str, tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(ValueError, match="cannot be read as a record of a recipe"):
        read_record(tmp_path)
