# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or do not count.

A checkpoint is a folder `checkpoint-<step>`. While it is written, a lock marks it; its manifest, with size and digest
of every file, appears last. A folder is renamed before it is deleted or replaced, so that a kill at any moment leaves
whole folders and folders that do not count, never a mixture.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from .folders import MANIFEST, WRITING, commit, find_damage, is_complete, remove
from .processes import together

logger = logging.getLogger(__name__)

STATE = "ppo_state.json"
_MARKS = (MANIFEST, STATE, WRITING, "critic")  # every checkpoint of `PPOTrainer` has at least one of them


def replace(folder: Path, target: Path) -> None:
    """Put `folder` in the place of `target`, which may exist and must be in the same folder as it.

    Killed in the middle, the old one is at `.replaced-<name>` until `recover` puts it back.
    """
    _keep_replaced(target)
    os.replace(folder, target)
    _drop_replaced(target)


def recover(folder: Path) -> None:
    """Finish every `remove` and `replace` that a kill interrupted in `folder`, a folder of such folders."""
    for doomed in folder.glob(".removed-*"):
        shutil.rmtree(doomed, ignore_errors=True)
    for kept in folder.glob(".replaced-*"):
        target = kept.with_name(kept.name.removeprefix(".replaced-"))
        if target.is_dir() and is_being_written(target):
            continue
        if target.is_dir() and (is_complete(target) or not is_complete(kept)):
            remove(kept)
            continue
        if target.is_dir():
            set_aside(target)
        os.replace(kept, target)


def _keep_replaced(folder: Path) -> None:
    kept = folder.with_name(f".replaced-{folder.name}")
    if folder.is_dir():
        if kept.is_dir():
            remove(kept)
        os.replace(folder, kept)


def _drop_replaced(folder: Path) -> None:
    kept = folder.with_name(f".replaced-{folder.name}")
    if kept.is_dir():
        remove(kept)


def step_of(folder: Path) -> int | None:
    """Return the optimizer step in the name of a checkpoint; None for every other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else None


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders named `checkpoint-<step>`, by step, whole or not."""
    steps = {folder: step_of(folder) for folder in output_dir.glob("checkpoint-*") if folder.is_dir()}
    return sorted((f for f, step in steps.items() if step is not None), key=lambda f: (steps[f], f.name))


def is_being_written(folder: Path) -> bool:
    """Return whether a living process writes this checkpoint; a process that died has lost its lock."""
    marker = folder / WRITING
    if not marker.is_file():
        return False
    lock = FileLock(marker)
    try:
        lock.acquire(blocking=False)
    except OSError:  # held by another, or not to be opened
        return True
    lock.release()
    return False


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint that must not be resumed from, and delete those that were renamed before."""
    aside = folder.with_name(f"incomplete-{folder.name}")
    for earlier in folder.parent.glob("incomplete-checkpoint-*"):
        if earlier.is_dir():
            remove(earlier)
    os.replace(folder, aside)
    return aside


def set_aside_incomplete(output_dir: Path, *, leader: bool = True) -> None:
    """Rename half-written checkpoints, so that none is taken for whole; the newest of them is kept.

    A checkpoint that a living process is writing is left alone, and so are other trainers' checkpoints. File sizes are
    compared, not contents.

    Args:
        output_dir: Folder of the checkpoints.
        leader: True on the one process that renames; the others wait for it.
    """
    with together("Setting half-written checkpoints aside"):
        if leader:
            _set_aside_incomplete(output_dir)


def _set_aside_incomplete(output_dir: Path) -> None:
    recover(output_dir)
    for folder in checkpoints(output_dir):
        fault = find_damage(folder, contents=False)
        if fault is not None and not _is_foreign(folder) and not is_being_written(folder):
            aside = set_aside(folder)
            logger.warning(f"{folder} was only half written ({fault}); it was renamed to {aside.name} and is skipped.")


def _is_foreign(folder: Path) -> bool:
    """Return whether another trainer wrote this checkpoint: `trainer_state.json` is written after the critic."""
    return (folder / "trainer_state.json").is_file() and not any((folder / mark).exists() for mark in _MARKS)


def newest_whole(output_dir: Path) -> Path | None:
    """Return the newest checkpoint whose files are as they were written, and set newer, damaged ones aside.

    Checkpoints that a living process is writing, and other trainers', are passed over.
    """
    recover(output_dir)
    for folder in reversed(checkpoints(output_dir)):
        fault = find_damage(folder)
        if fault is None:
            return folder
        if _is_foreign(folder):
            logger.warning(f"{folder} was written by another trainer; it is skipped.")
        elif is_being_written(folder):
            logger.warning(f"{folder} is being written by another process; it is skipped.")
        else:
            aside = set_aside(folder)
            logger.warning(f"{folder} is damaged ({fault}); it was renamed to {aside.name} and an older one is used.")
    return None


@contextmanager
def writing(folder: Path, *, leader: bool) -> Iterator[None]:
    """Write a checkpoint in the block; it counts from the end of the block on, and a failure leaves none of it.

    Args:
        folder: The checkpoint. One of the same step is replaced when the new one is whole, and stays if it fails.
        leader: True on the one process that creates, commits and cleans up; every process must enter the block.

    Raises:
        RuntimeError: when the checkpoint cannot be written, or another process is writing it.
    """
    lock = FileLock(folder / WRITING)
    with together(f"Writing {folder}"):
        if leader:
            _begin(folder, lock)
    try:
        yield
        with together(f"Writing {folder}"):
            pass  # every process has written its part
        with together(f"Writing {folder}"):
            if leader:
                commit(folder)
    except BaseException as error:
        # No agreement on failures inside the block: the others may wait in a collective of the Trainer's own.
        if leader:
            lock.release()
            shutil.rmtree(folder, ignore_errors=True)
            recover(folder.parent)
        if isinstance(error, Exception):
            raise _not_written(folder, error) from error
        raise
    if leader:
        lock.release()
        (folder / WRITING).unlink(missing_ok=True)
        _drop_replaced(folder)


def _begin(folder: Path, lock: FileLock) -> None:
    if is_being_written(folder):
        raise RuntimeError(
            f"{folder} is being written by another process: two runs have the same `output_dir`; give each its own."
        )
    try:
        _keep_replaced(folder)
        folder.mkdir(parents=True)
        lock.acquire(timeout=60)  # `is_being_written` holds it for a moment
    except OSError as error:
        raise _not_written(folder, error) from error


def _not_written(folder: Path, error: Exception) -> RuntimeError:
    whole = [older.name for older in checkpoints(folder.parent) if older != folder and is_complete(older)]
    older = f"{whole[-1]} is whole" if whole else "there is no older one"
    reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    # torch and safetensors have other errors than OSError for a full disk; these two are of what was to be written.
    advice = "" if isinstance(error, TypeError | ValueError) else "make room or choose another `output_dir`; "
    return RuntimeError(f"{folder} could not be written ({reason}); {advice}{older}.")


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints, by step, until `limit` whole ones are left.

    Args:
        newest: The checkpoint just written; it stays. Later steps are of an earlier run and are left alone.
        limit: Checkpoints to keep; None or 0 for all.
        best: The checkpoint of the best model, which stays too; None if there is none.
    """
    if not limit or limit < 0:
        return
    step = step_of(newest)
    whole = [c for c in checkpoints(newest.parent) if is_complete(c) and (step_of(c) or 0) <= (step or 0)]
    protected = {newest.name, Path(best).name if best else newest.name}
    surplus = len(whole) - max(limit, len(protected))
    for folder in [folder for folder in whole if folder.name not in protected][: max(0, surplus)]:
        remove(folder)
