# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or do not count, and that fit the run they are loaded into."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "ppo_state.json"
_MARKS = (MANIFEST, STATE, "critic")  # at least one of them is in every checkpoint of `PPOTrainer` with a state


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def commit(folder: Path) -> None:
    """
    Declare a checkpoint complete.

    The manifest, with the size of every file, appears in one atomic step after everything else has reached the disk: a
    checkpoint without it, or with a file of another size, was interrupted and is not resumed from.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    write_json(folder / MANIFEST, {str(p.relative_to(folder)): p.stat().st_size for p in files})


def is_complete(folder: Path) -> bool:
    """Whether `commit` was reached and every file is still as it was then."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == n for name, n in manifest.items())


def set_aside_incomplete(output_dir: Path) -> None:
    """
    Rename half-written checkpoints, so that `resume_from_checkpoint=True` goes back to the last whole one.

    Other trainers' checkpoints may share the directory and are left alone.
    """
    for folder in sorted(output_dir.glob("checkpoint-*")):
        if not folder.is_dir() or not re.fullmatch(r"checkpoint-\d+", folder.name) or is_complete(folder):
            continue
        # Written by the Trainer near the end, but only after the critic.
        if (folder / "trainer_state.json").is_file() and not any((folder / mark).exists() for mark in _MARKS):
            continue
        aside = folder.with_name(f"incomplete-{folder.name}")
        suffix = 1
        while aside.exists():
            aside = folder.with_name(f"incomplete-{folder.name}.{suffix}")
            suffix += 1
        os.replace(folder, aside)
        logger.warning(f"{folder} was only half written; it was renamed to {aside.name} and is skipped.")


def check_same_configuration(folder: Path, current: dict[str, Any]) -> dict[str, Any]:
    """
    Read the PPO state of a checkpoint, if it belongs to a run like this one.

    Args:
        folder: The checkpoint.
        current: What must agree, by name.

    Returns:
        The saved state.

    Raises:
        ValueError: when the checkpoint is not one of `PPOTrainer`, or a setting differs; all that differ are named.
    """
    try:
        state = json.loads((folder / STATE).read_text())
    except OSError:
        raise ValueError(f"{folder} has no {STATE}: it is not a checkpoint that PPOTrainer can resume from.") from None
    saved = state["configuration"]
    different = [f"{k} (then {saved.get(k)}, now {v})" for k, v in current.items() if saved.get(k) != v]
    if different:
        raise ValueError(
            f"{folder} is a checkpoint of another configuration: {', '.join(different)}; use the same settings, or "
            "another `output_dir` to start anew."
        )
    return state
