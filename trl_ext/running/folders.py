# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Folders that are whole or not there, that belong to one process at a time, and whose content names them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from trl_ext.checkpoint import digest, remove

__all__ = [
    "content_of",
    "discard",
    "is_whole_model",
    "locked",
    "model_content",
    "set_aside",
    "set_aside_run",
    "write_whole",
]

# Files of a model folder that say nothing about the model.
_INCIDENTAL = ("training_args.bin", "README.md")
_MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")


def discard(folder: Path) -> None:
    """Delete a folder, where there is one; killed in the middle, none of it is left under its name."""
    if folder.is_dir():
        remove(folder)


def set_aside(folder: Path) -> Path:
    """Rename a folder to the first free name of `folder.old-1`, `folder.old-2`, ...; return the new name."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    os.replace(folder, aside)
    return aside


# What a run leaves at the top of its output directory.
_RUN_MARKS = ("ppo_config.json", "summary.json", "checkpoint-*")
_RUN_FILES = (
    *_RUN_MARKS, "incomplete-checkpoint-*", "critic", "*.safetensors", "*.safetensors.index.json", "*config.json",
    "quantization.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*",
    "training_args.bin", "report.html", "README.md",
)  # fmt: skip


def set_aside_run(output_dir: Path) -> Path | None:
    """Move what an earlier run left in an output directory into `earlier-run-1` (or -2, ...) there; return its name."""
    if not any(path for mark in _RUN_MARKS for path in output_dir.glob(mark)):
        return None
    number = 1
    while (aside := output_dir / f"earlier-run-{number}").exists():
        number += 1
    aside.mkdir()
    for path in {path for pattern in _RUN_FILES for path in output_dir.glob(pattern)}:
        os.replace(path, aside / path.name)
    return aside


def write_whole(folder: Path, write: Callable[[Path], object]) -> Path:
    """Fill a folder that appears under its name only when every file of it has reached the disk.

    Args:
        folder: What stood there before is replaced.
        write: Called with the folder to fill, which is empty.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    for path in [unfinished, *unfinished.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    discard(folder)
    os.replace(unfinished, folder)
    return folder


def is_whole_model(folder: Path) -> bool:
    """Whether a folder holds a configuration and every weight that belongs to it: a model's, or an adapter's."""
    if (folder / "adapter_config.json").is_file():
        return _is_whole_file(folder / "adapter_model.safetensors")
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return _is_whole_file(folder / "model.safetensors")
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    return bool(names) and all(_is_whole_file(folder / name) for name in names)


def _is_whole_file(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):  # compares the header with the length of the file
            return True
    except (OSError, SafetensorError):
        return False


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
    """As `content_of`, for a model: of a folder count the configuration, the weights and the tokenizer."""
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
