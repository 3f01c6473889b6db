# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Folders appear whole, and a model's folder is whole with all of its weights; manifests are in test_checkpoint.py."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_models import tiny_causal_lm
from trl_ext.folders import MANIFEST, commit, is_whole_model, remove, whole_folder


def test_a_folder_appears_when_its_block_succeeds(tmp_path):
    folder = tmp_path / "deep" / "model"
    with pytest.raises(OSError, match="No space"), whole_folder(folder) as unfinished:
        (unfinished / "half").write_text("x")
        raise OSError(28, "No space left on device")
    assert list(folder.parent.iterdir()) == []
    folder.mkdir()
    with whole_folder(folder) as unfinished:
        (unfinished / "weights").write_text("x")
        assert list(folder.iterdir()) == []
    assert [path.name for path in folder.parent.iterdir()] == ["model"] and (folder / "weights").is_file()
    with pytest.raises(OSError, match="not empty"), whole_folder(folder):
        pass
    assert [path.name for path in folder.parent.iterdir()] == ["model"] and (folder / "weights").is_file()
    with whole_folder(folder, replace=True) as unfinished:
        (unfinished / "again").touch()
    assert [path.name for path in folder.iterdir()] == ["again"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def in_whole_folder(folder: Path, write: Callable[[Path], None]) -> None:
    with whole_folder(folder) as unfinished:
        write(unfinished)


def in_commit(folder: Path, write: Callable[[Path], None]) -> None:
    folder.mkdir()
    write(folder)
    commit(folder)
    assert (folder / MANIFEST).is_file()


@pytest.mark.parametrize("finish", [in_whole_folder, in_commit])
def test_weights_are_as_readable_as_any_new_file(finish: Callable[..., None], tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        for name in ("model.safetensors", "inner/model.safetensors", "secret"):
            (folder / name).write_text("x")
            (folder / name).chmod(0o600)

    before = os.umask(0o027)
    try:
        finish(tmp_path / "model", write)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert modes.pop(MANIFEST, 0o640) == 0o640
    assert modes == {"model.safetensors": 0o640, "secret": 0o600}


def test_nothing_is_removed_where_nothing_is(tmp_path):
    (tmp_path / ".removed-model").mkdir()
    remove(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["none", "truncated", "no weights", "no configuration", "a shard is missing"])
def test_a_whole_model_has_all_of_its_weights(damage, tmp_path):
    model = tiny_causal_lm()
    model.save_pretrained(tmp_path, max_shard_size="20KB" if "shard" in damage else "1GB")
    weights = sorted(tmp_path.glob("*.safetensors"))
    if damage == "truncated":
        weights[0].write_bytes(weights[0].read_bytes()[:-1])
    elif damage == "no configuration":
        (tmp_path / "config.json").unlink()
    elif damage != "none":
        assert (len(weights) > 1) == ("shard" in damage)
        weights[-1].unlink()
    assert is_whole_model(tmp_path) == (damage == "none")
