# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The reward functions to start from: values by hand, and all of them in a run."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import scripted
from trl_ext.rewards import check_reward, reward_by_name

from .conftest import EXAMPLES

NAMES = ["brevity", "mentions", "checked_elsewhere", "Blocklist"]
PROMPTS = ["Once", "Then"]


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The functions of the file, which is forgotten afterwards: other tests have files of its name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    yield {name: reward_by_name(f"{EXAMPLES / 'my_rewards.py'}:{name}") for name in NAMES}
    sys.modules.pop("my_rewards", None)


def test_values(rewards: dict[str, Any]) -> None:
    assert rewards["brevity"](PROMPTS * 2, ["a b", "", " ".join("a" * 18), " ".join("a" * 12)]) == [0, -1, -0.5, 0]
    said = rewards["mentions"](PROMPTS * 2, ["The Cat", "a dog", "a cat", ""], keyword=["cat", "cat", None, "cat"])
    assert said == [1, 0, None, 0]
    assert rewards["Blocklist"](PROMPTS, ["You IDIOT!", "You star!"]) == [-1, 0]


@pytest.mark.parametrize("name", NAMES)
def test_check_reward_finds_no_fault(rewards: dict[str, Any], name: str) -> None:
    columns = {"keyword": ["cat", "dog"]} if name == "mentions" else {}
    checked = check_reward(rewards[name], PROMPTS, ["It is a cat.", "an idiot " * 9], **columns)
    assert not checked.warnings
    expected = {"brevity": [0, -0.5], "mentions": [1, 0], "checked_elsewhere": [1, 0], "Blocklist": [0, -1]}
    assert checked.values[:2] == expected[name]


def test_a_run_logs_each_of_them(rewards: dict[str, Any], tmp_path: Path) -> None:
    rows = scripted.prompts(16)
    rows = rows.add_column("keyword", ["a", None] * 8)
    trainer = scripted.trainer(tmp_path, reward_funcs=list(rewards.values()), train_dataset=rows, total_episodes=8)
    trainer.train()
    logged = scripted.logs(trainer)[-1]
    assert all(f"rewards/{name}/mean" in logged for name in ("brevity", "mentions", "checked_elsewhere", "blocklist"))
