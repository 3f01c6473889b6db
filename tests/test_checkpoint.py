# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints are whole or do not count."""

import contextlib
import json
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from trl_ext import checkpoint
from trl_ext.checkpoint import newest_whole, rotate, set_aside_incomplete, writing
from trl_ext.files import write_json
from trl_ext.folders import MANIFEST, commit, digest, find_damage, is_complete, remove

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
    (folder / MANIFEST).unlink()


def half_a_manifest(folder: Path) -> None:
    content = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(content[: len(content) // 2])


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
    message = record.getMessage()
    assert "checkpoint-10 was only half written (" in message
    assert message.endswith("); it was renamed to incomplete-checkpoint-10 and is skipped.") and "\n" not in message
    caplog.clear()
    set_aside_incomplete(tmp_path)
    assert not caplog.records and is_complete(first)


def test_the_newest_of_those_set_aside_is_kept(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-11"):
        folder = whole(tmp_path / name)
        no_manifest(folder)
        (folder / "model.safetensors").write_text(name)
        set_aside_incomplete(tmp_path)
    (aside,) = tmp_path.iterdir()
    assert aside.name == "incomplete-checkpoint-11"
    for name in ("checkpoint-100", "checkpoint-20"):
        no_manifest(whole(tmp_path / name))
    set_aside_incomplete(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["incomplete-checkpoint-100"]


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
            assert ("replace" in calls[:-1]) == (folder / MANIFEST).exists()
            return function(*args)

        return called

    monkeypatch.setattr(os, "fsync", spy("fsync", fsync))
    monkeypatch.setattr(os, "replace", spy("replace", replace))
    commit(folder)
    # Four files and a folder of the checkpoint, then the manifest's own content, then its name.
    assert calls[:7] == ["fsync"] * 6 + ["replace"] and is_complete(folder)


def flipped_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[3] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def zeroed_file(folder: Path) -> None:
    path = folder / "critic" / "value_head.safetensors"
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [flipped_bit, zeroed_file])
def test_a_change_that_keeps_the_size_is_found(damage, tmp_path, caplog):
    first, last = whole(tmp_path / "checkpoint-9"), whole(tmp_path / "checkpoint-10")
    damage(last)
    assert is_complete(last) and find_damage(first) is None
    name = "model.safetensors" if damage is flipped_bit else "critic/value_head.safetensors"
    assert find_damage(last) == f"the content of '{name}' is not what was written"
    assert newest_whole(tmp_path) == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-9", "incomplete-checkpoint-10"]
    assert f"checkpoint-10 is damaged (the content of '{name}' is not what was written)" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_one_is_found_behind_any_damage(damage, tmp_path):
    first, last = whole(tmp_path / "checkpoint-9"), whole(tmp_path / "checkpoint-10")
    assert newest_whole(tmp_path) == last
    damage(last)
    assert newest_whole(tmp_path) == first
    damage(first)
    assert newest_whole(tmp_path) is None


def test_a_manifest_with_sizes_only_is_read(tmp_path):
    """As versions before the digests wrote it."""
    folder = whole(tmp_path / "checkpoint-1")
    sizes = {name: entry["bytes"] for name, entry in json.loads((folder / MANIFEST).read_text()).items()}
    assert sizes["model.safetensors"] == len(b"weights")
    (folder / MANIFEST).write_text(json.dumps(sizes))
    assert find_damage(folder) is None
    truncated_file(folder)
    assert find_damage(folder) == "'model.safetensors' has 5 bytes instead of 7"


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"model.safetensors": {}}', "\0\0\0\0"])
def test_a_manifest_of_nonsense_is_damage(content, tmp_path):
    folder = whole(tmp_path / "checkpoint-1")
    (folder / MANIFEST).write_text(content)
    assert find_damage(folder) == "its manifest.json cannot be read"


def test_the_digest_is_blake2b(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # RFC 7693 gives 64 bytes for "abc"; the 16-byte digest is b2sum's: printf abc | b2sum -l 128
    assert digest(tmp_path / "file") == "cf4ab791c62b8d2b2109c90275287816"


class Killed(BaseException):
    """What a kill looks like to code that cannot catch it: nothing after it runs."""


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
@pytest.mark.parametrize("what", ["remove", "replace"])
def test_a_kill_while_a_folder_is_removed_or_replaced_leaves_whole_ones(what, calls, tmp_path, monkeypatch):
    """Killed before any of the calls that change the disk, or in the middle of a deletion."""
    target, new = whole(tmp_path / "target"), whole(tmp_path / "new")
    (new / "only-new").touch()
    left, rmtree = [calls], checkpoint.shutil.rmtree

    def counted(function):
        def called(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                if function is rmtree and Path(args[0]).is_dir():
                    missing_file(Path(args[0]))
                raise Killed
            return function(*args, **kwargs)

        return called

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(checkpoint.shutil, "rmtree", counted(checkpoint.shutil.rmtree))
        with contextlib.suppress(Killed):
            remove(target) if what == "remove" else checkpoint.replace(new, target)
    checkpoint.recover(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names <= {"target", "new"}
    assert all(is_complete(tmp_path / name) for name in names)
    if what == "replace":
        assert "target" in names, "there is always a whole one"
        assert (target / "only-new").exists() != (new / "only-new").exists()


def test_a_checkpoint_counts_from_the_end_of_the_block(tmp_path):
    folder = tmp_path / "checkpoint-3"
    with writing(folder, leader=True):
        (folder / "model.safetensors").write_bytes(b"weights")
        assert not is_complete(folder)
    assert is_complete(folder) and sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.safetensors"]


def test_a_checkpoint_of_the_same_step_is_replaced_and_nothing_of_it_is_left(tmp_path):
    old = whole(tmp_path / "checkpoint-3")
    with writing(old, leader=True):
        (old / "model.safetensors").write_bytes(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"] and find_damage(old) is None
    assert (old / "model.safetensors").read_bytes() == b"new"


def test_a_failed_checkpoint_leaves_nothing_and_the_one_that_it_would_replace(tmp_path):
    whole(tmp_path / "checkpoint-2")
    old = whole(tmp_path / "checkpoint-3")
    with pytest.raises(RuntimeError) as raised, writing(old, leader=True):
        (old / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert str(raised.value) == (
        f"{old} could not be written (OSError: [Errno 28] No space left on device); make room or choose another "
        "`output_dir`; checkpoint-2 is whole."
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert find_damage(old) is None and (old / "model.safetensors").read_bytes() == b"weights"


def test_a_checkpoint_being_written_by_another_process_is_left_alone(tmp_path, caplog):
    """Another process writes; killed, it has lost its lock, and its checkpoint is set aside."""
    whole(tmp_path / "checkpoint-2")
    folder, ready = tmp_path / "checkpoint-3", tmp_path / "ready"
    pid = os.fork()
    if pid == 0:
        with writing(folder, leader=True):
            (folder / "model.safetensors").write_bytes(b"half")
            ready.touch()
            time.sleep(60)
        os._exit(0)
    try:
        while not ready.exists():
            time.sleep(0.01)
        set_aside_incomplete(tmp_path)
        assert folder.is_dir() and not caplog.records
        assert newest_whole(tmp_path) == tmp_path / "checkpoint-2"
        assert "checkpoint-3 is being written by another process; it is skipped." in caplog.text
        two_runs = "is being written by another process: two runs have the same"
        with pytest.raises(RuntimeError, match=two_runs), writing(folder, leader=True):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    set_aside_incomplete(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*check*")) == ["checkpoint-2", "incomplete-checkpoint-3"]


def steps(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder)]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [8, 9, 10, 30]),
        (3, None, [8, 9, 10, 30]),
        (2, None, [9, 10, 30]),
        (1, None, [10, 30]),
        (1, 8, [8, 10, 30]),
        (2, 8, [8, 10, 30]),
        (2, 10, [9, 10, 30]),
    ],
)
def test_the_oldest_steps_go_whatever_their_times_are(limit, best, left, tmp_path):
    """Step 30 is of an earlier run; the times are in the reverse of the order of the steps."""
    for seconds, step in ((1, 30), (50, 10), (100, 9), (200, 8)):
        whole(tmp_path / f"checkpoint-{step}")
        os.utime(tmp_path / f"checkpoint-{step}", (seconds, seconds))
    no_manifest(whole(tmp_path / "checkpoint-7"))
    (tmp_path / "checkpoint-5-merged").mkdir()
    # As after moving the output directory: the path of the best one is that of the old place.
    rotate(tmp_path / "checkpoint-10", limit, f"/elsewhere/checkpoint-{best}" if best else None)
    assert steps(tmp_path) == [7, *left], "what is not whole is no reason to delete what is"
    assert (tmp_path / "checkpoint-5-merged").is_dir()
