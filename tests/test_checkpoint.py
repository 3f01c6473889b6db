# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints are whole or do not count."""

import json
import logging
import os
from pathlib import Path

import pytest

from trl_ext import checkpoint
from trl_ext.checkpoint import check_same_configuration, commit, is_complete, set_aside_incomplete, write_json

CONFIGURATION = {"batch size": 8, "critic": "head", "adapters": False}


def whole(folder: Path) -> Path:
    (folder / "critic").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "critic" / "value_head.safetensors").write_bytes(b"head")
    (folder / "trainer_state.json").write_text("{}")
    write_json(folder / checkpoint.STATE, {"configuration": CONFIGURATION, "kl_controller": {"coef": 0.5}})
    commit(folder)
    return folder


def no_manifest(folder: Path) -> None:
    (folder / checkpoint.MANIFEST).unlink()


def half_a_manifest(folder: Path) -> None:
    content = (folder / checkpoint.MANIFEST).read_text()
    (folder / checkpoint.MANIFEST).write_text(content[: len(content) // 2])


def missing_file(folder: Path) -> None:
    (folder / "critic" / "value_head.safetensors").unlink()


def truncated_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weigh")


def only_a_folder(folder: Path) -> None:
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


DAMAGES = [no_manifest, half_a_manifest, missing_file, truncated_file, only_a_folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_half_written_checkpoint_is_set_aside_and_whole_ones_are_kept(damage, tmp_path, caplog):
    first, last = whole(tmp_path / "checkpoint-9"), whole(tmp_path / "checkpoint-10")
    assert is_complete(first) and is_complete(last)
    damage(last)
    assert not is_complete(last)
    with caplog.at_level(logging.WARNING):
        set_aside_incomplete(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-9", "incomplete-checkpoint-10"]
    (record,) = caplog.records
    assert "checkpoint-10 was only half written; it was renamed to incomplete-checkpoint-10" in record.getMessage()
    caplog.clear()
    set_aside_incomplete(tmp_path)
    assert not caplog.records and is_complete(first)


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    for _ in range(3):
        no_manifest(whole(tmp_path / "checkpoint-10"))
        set_aside_incomplete(tmp_path)
    names = ["incomplete-checkpoint-10", "incomplete-checkpoint-10.1", "incomplete-checkpoint-10.2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert all((tmp_path / name / "model.safetensors").is_file() for name in names), "nothing is lost"


def test_what_is_no_checkpoint_of_ours_is_left_alone(tmp_path):
    for name in ("checkpoint-best", "checkpoint-10-merged", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    (tmp_path / "checkpoint-8").mkdir()
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):  # of another trainer
        (tmp_path / "checkpoint-8" / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    set_aside_incomplete(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    set_aside_incomplete(tmp_path / "missing")


def test_a_checkpoint_may_be_moved(tmp_path):
    whole(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1").rename(tmp_path / "checkpoint-2")
    assert is_complete(tmp_path / "checkpoint-2")


def test_the_manifest_comes_last_and_at_once(tmp_path, monkeypatch):
    """Killed at any call before the last one, no manifest is there."""
    calls: list[str] = []
    folder = whole(tmp_path / "checkpoint-1")
    no_manifest(folder)
    fsync, replace = os.fsync, os.replace

    def spy(name, function):
        def called(*args):
            calls.append(name)
            assert not (folder / checkpoint.MANIFEST).exists()
            return function(*args)

        return called

    monkeypatch.setattr(os, "fsync", spy("fsync", fsync))
    monkeypatch.setattr(os, "replace", spy("replace", replace))
    commit(folder)
    # Four files of the checkpoint, then the manifest's own content, then its name.
    assert calls == ["fsync"] * 5 + ["replace"] and is_complete(folder)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "state.json", {"step": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "state.json", {"step": 2, "rollout": object()})
    assert json.loads((tmp_path / "state.json").read_text()) == {"step": 1}


def test_the_state_of_the_same_configuration_is_returned(tmp_path):
    state = check_same_configuration(whole(tmp_path / "checkpoint-1"), dict(CONFIGURATION))
    assert state["kl_controller"] == {"coef": 0.5}


def test_every_difference_is_named_with_both_values(tmp_path):
    folder = whole(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match="another configuration") as error:
        check_same_configuration(folder, {"batch size": 16, "critic": "head", "adapters": True, "seed": 3})
    message = str(error.value)
    assert "batch size (then 8, now 16), adapters (then False, now True), seed (then None, now 3)" in message
    assert "critic" not in message and str(folder) in message and "\n" not in message


def test_a_checkpoint_of_another_trainer_is_no_checkpoint(tmp_path):
    with pytest.raises(
        ValueError, match=f"has no {checkpoint.STATE}: it is not a checkpoint that PPOTrainer can resume"
    ):
        check_same_configuration(tmp_path, CONFIGURATION)
