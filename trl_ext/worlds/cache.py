# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Folders that are made once and found afterwards."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trl_ext.folders import commit, find_damage, whole_folder
from trl_ext.monitoring.console import CONSOLE


def key(settings: Any, seed: int, files: Iterable[str | None]) -> str:
    """Return a digest of the settings, the seed and the code that makes the files.

    Args:
        settings: A dataclass.
        seed: Seed of the files.
        files: Modules that make the files.
    """
    found = hashlib.sha256(json.dumps({**asdict(settings), "seed": seed}, sort_keys=True).encode())
    for file in files:
        found.update(Path(str(file)).read_bytes())
    return found.hexdigest()[:16]


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Fill `folder` by `build(temporary_folder)` unless it is complete already.

    The work happens in a temporary folder beside it that takes its name in one step, so an interrupted build leaves
    nothing that could be taken for a finished one. One process builds; others wait for it.

    Raises:
        OSError: If the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another process is making {folder}; this one waits for it.", flush=True)
        lock.acquire()
    try:
        if find_damage(folder) is not None:
            if folder.exists():
                print(f"{folder} is incomplete and is made again")
            making = CONSOLE.activity(f"making the embedded {folder.name}, once", bars=False, long=True)
            with making, whole_folder(folder, replace=True) as work:
                build(work)
                commit(work)
    finally:
        lock.release()
    return folder
