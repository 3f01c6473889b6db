# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Folders that are either complete or not there."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

MANIFEST = "complete.json"


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def is_complete(folder: Path) -> bool:
    """Whether every file that was written is still there with its size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest == _sizes(folder))


def key(settings: Any, seed: int, files: Iterable[str | None]) -> str:
    """
    Changes with the settings, the seed and the code that makes the files.

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
    nothing that could be taken for a finished one.

    Raises:
        OSError: If the folder cannot be written.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        print(f"{folder} is incomplete and is made again")
        shutil.rmtree(folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as parent:
        work = Path(parent) / folder.name
        work.mkdir()
        build(work)
        (work / MANIFEST).write_text(json.dumps(_sizes(work)), encoding="utf-8")
        try:
            os.replace(work, folder)
        except OSError:
            # Another process was faster; its folder is as good as ours.
            if not is_complete(folder):
                raise
    return folder
