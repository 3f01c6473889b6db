# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Folders that are either complete or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trl_ext.checkpoint import digest, remove

MANIFEST = "complete.json"


def is_complete(folder: Path) -> bool:
    """Whether every file that was written is still there, with the content that it had."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest == _digests(folder))


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def key(settings: Any, seed: int, files: Iterable[str | None]) -> str:
    """Changes with the settings, the seed and the code that makes the files.

    Args:
        settings: A dataclass.
        seed: Of what is made.
        files: The code.
    """
    digest = hashlib.sha256(json.dumps({**asdict(settings), "seed": seed}, sort_keys=True).encode())
    for file in files:
        digest.update(Path(str(file)).read_bytes())
    return digest.hexdigest()[:16]


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
        if not is_complete(folder):
            _build(folder, build)
    finally:
        lock.release()
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    if folder.exists():
        print(f"{folder} is incomplete and is made again")
        remove(folder)
    for remains in (*folder.parent.glob(f".removed-{folder.name}"), folder.parent / f".{folder.name}.unfinished"):
        shutil.rmtree(remains, ignore_errors=True)
    work = folder.parent / f".{folder.name}.unfinished"
    work.mkdir()
    try:
        build(work)
        (work / MANIFEST).write_text(json.dumps(_digests(work)), encoding="utf-8")
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
