# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Folders appear whole, and a model's folder is whole with all of its weights; manifests are in test_checkpoint.py."""

import pytest

from tests.tiny_models import tiny_causal_lm
from trl_ext.folders import is_whole_model, remove, whole_folder


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
