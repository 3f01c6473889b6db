# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A run in the terminal and in its log file: what is written, once each, and what a user may choose."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback, ProgressCallback

from tests import scripted
from trl_ext.monitoring.console import CONSOLE
from trl_ext.monitoring.display import LogFile, RunDisplay

RUN = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_dataset": scripted.prompts(4),
    "save_strategy": "steps",
    "save_steps": 1,
    "kl_controller": "adaptive",
    "kl_target": 1.5,
}


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_says_a_line_a_log_and_writes_the_rest_into_its_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    made = scripted.trainer(tmp_path, **RUN)
    made.train()
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == f"All metrics of each line are in {tmp_path / 'log.jsonl'}."
    kinds = [line.split("  ")[0] for line in lines[1:]]
    assert kinds == ["step 1/4", "step 2/4", "eval", "step 3/4", "step 4/4", "eval", "finished"]
    assert all("(target 1.5)" in line for line in lines[1:-1]) and "episodes 16" in lines[-1]
    assert said.err.splitlines() == ["... loading the policy and its reference", "... training"]
    assert entries(tmp_path) == json.loads(json.dumps(made.state.log_history))
    assert [entry["episodes"] for entry in made.state.log_history] == [8, 8, 8, 16, 16, 16, 16]


def test_a_resumed_run_says_so_and_has_every_entry_once(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Interrupted after step 3 with a checkpoint at 2, and a file that has more than the checkpoint."""
    scripted.trainer(tmp_path, **{**RUN, "save_steps": 2, "max_steps": 3, "total_episodes": None}).train()
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2, 2, 3, 3, 3]
    capsys.readouterr()
    made = scripted.trainer(tmp_path, **{**RUN, "save_steps": 2})
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2, 2, 3, 4, 4, 4]
    assert entries(tmp_path) == json.loads(json.dumps(made.state.log_history))
    assert [entry["episodes"] for entry in entries(tmp_path)] == [8, 8, 8, 16, 16, 16, 16]
    assert "Resuming from checkpoint-2." in capsys.readouterr().out.splitlines()


def test_an_evaluation_before_training_stays_in_the_file_and_an_earlier_run_does_not(tmp_path: Path):
    settings = {**RUN, "save_strategy": "no"}
    scripted.trainer(tmp_path, **settings).train()
    made = scripted.trainer(tmp_path, **settings)
    made.evaluate()
    made.train()
    made.evaluate()
    assert [entry["step"] for entry in entries(tmp_path)] == [0, 1, 2, 2, 3, 4, 4, 4, 4]


def test_a_training_that_fails_ends_its_display(tmp_path: Path):
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise ValueError("broken")

    made = scripted.trainer(tmp_path, reward_funcs=broken, reward_retries=0)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broken"):
        made.train()
    assert threading.active_count() == before and CONSOLE._activities == []


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_the_trainers_own_display_gives_way_and_a_users_stays(tmp_path: Path, disable_tqdm: bool):
    def kinds(*given: Any) -> list[str]:
        made = scripted.trainer(tmp_path, disable_tqdm=disable_tqdm, callbacks=list(given))
        shown = (PrinterCallback, ProgressCallback, RunDisplay)
        return [type(c).__name__ for c in made.callback_handler.callbacks if isinstance(c, shown)]

    class OwnProgress(ProgressCallback):
        pass

    assert kinds() == ["RunDisplay"]
    assert kinds(OwnProgress()) == ["OwnProgress"] and kinds(OwnProgress) == ["OwnProgress"]
    assert kinds(PrinterCallback()) == ["PrinterCallback"]


def test_the_callbacks_can_be_removed(tmp_path: Path, capsys: pytest.CaptureFixture):
    made = scripted.trainer(tmp_path)
    made.remove_callback(RunDisplay)
    made.remove_callback(LogFile)
    made.train()
    assert capsys.readouterr().out == "" and not (tmp_path / "log.jsonl").exists()
