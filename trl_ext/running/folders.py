# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Output directories: earlier content set aside, one process at a time, data and models identified by content."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trl_ext.folders import EARLIER_RUN, MANIFEST, digest

__all__ = [
    "content_of",
    "locked",
    "model_content",
    "set_aside",
    "set_aside_run",
]

# Files of a model folder that say nothing about the model.
_INCIDENTAL = ("training_args.bin", "README.md", "base_model.json", MANIFEST)
_MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")


def set_aside(folder: Path) -> Path:
    """Rename a folder to the first free name of `folder.old-1`, `folder.old-2`, ...; return the new name."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    os.replace(folder, aside)
    return aside


# What a run leaves at the top of its output directory.
_RUN_MARKS = ("ppo_config.json", "summary.json", "report_data.json", "log.jsonl", "checkpoint-*")
_RUN_FILES = (
    *_RUN_MARKS, "incomplete-checkpoint-*", "critic", "*.safetensors", "*.safetensors.index.json", "*config.json",
    "base_model.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*",
    "training_args.bin", "report.html", "README.md", "recipe.json", "interpolation.json", "ema", "reference",
    "unscaled", "critic_pretraining.json",
)  # fmt: skip


def set_aside_run(output_dir: Path) -> Path | None:
    """Move what an earlier run left in an output directory into `earlier-run-1` (or -2, ...) there; return its name."""
    if not any(path for mark in _RUN_MARKS for path in output_dir.glob(mark)):
        return None
    number = 1
    while (aside := output_dir / f"{EARLIER_RUN}{number}").exists():
        number += 1
    aside.mkdir()
    for path in {path for pattern in _RUN_FILES for path in output_dir.glob(pattern)}:
        os.replace(path, aside / path.name)
    return aside


@contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """Keep other processes out of an output directory; a killed process keeps nobody out.

    Raises:
        ValueError: if another process has it.
    """
    lock = FileLock(output_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"Another process is working in '{output_dir}'; wait for it, or choose another `--output_dir`."
        ) from None
    try:
        yield
    finally:
        lock.release()


def content_of(name: str | None) -> str | None:
    """Identify data by the digest of a file's or folder's content, and anything else (a name of the Hub) by its name.

    A file that was touched, copied or moved stays the same; one with another content does not.
    """
    path = Path(name).expanduser() if name else None
    if path is None or not path.exists():
        return name
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return _digest(path, files)


def model_content(name: str | None) -> str | None:
    """Identify a model as `content_of` does; of a folder count the configuration, the weights and the tokenizer."""
    path = Path(name).expanduser() if name else None
    if path is None or not path.is_dir():
        return name
    files = [file for file in path.iterdir() if file.suffix in _MODEL_FILES and file.name not in _INCIDENTAL]
    return _digest(path, sorted(files))


def _digest(root: Path, files: list[Path]) -> str:
    listing = "".join(
        f"{'' if file == root else file.relative_to(root).as_posix()}\0{digest(file)}\n" for file in files
    )
    return hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()
