# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Folders that are whole or do not count: manifests of sizes and digests, creation and deletion in one step."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .files import write_json

__all__ = [
    "EARLIER_RUN",
    "MANIFEST",
    "WRITING",
    "apply_umask",
    "commit",
    "digest",
    "final_name",
    "find_damage",
    "found_again",
    "is_complete",
    "is_whole_model",
    "portable",
    "remove",
    "whole_folder",
]

MANIFEST = "manifest.json"
EARLIER_RUN = "earlier-run-"  # and a number: the folder in an output directory that an earlier run was moved into
WRITING = ".writing"  # the lock of the process that writes the folder
_BLOCK = 1 << 20
_HASHING_THREADS = 8


def digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file's content, 128 bits in hexadecimal."""
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def commit(folder: Path) -> None:
    """Declare a folder complete.

    The manifest, with size and digest of every file, appears in one atomic step after everything else has reached the
    disk: a folder without it, or with a file of other content, was interrupted or damaged.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, WRITING))
    apply_umask(folder)
    for path in files:
        _sync(path)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = list(pool.map(digest, files))
    content = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": found}
        for path, found in zip(files, digests, strict=True)
    }
    for path in (path for path in folder.rglob("*") if path.is_dir()):
        _sync(path)
    write_json(folder / MANIFEST, content)
    # Names are on the disk only once their folders are.
    _sync(folder)
    _sync(folder.parent)


def is_complete(folder: Path) -> bool:
    """Return whether `commit` was reached and every file still has the size that it had then."""
    return find_damage(folder, contents=False) is None


def find_damage(folder: Path, *, contents: bool = True) -> str | None:
    """Compare every file of a folder with its manifest.

    Args:
        folder: A folder that `commit` has declared complete, or a part of one.
        contents: Whether digests are compared, and not sizes alone. A manifest of an earlier version has sizes only.

    Returns:
        The first fault, in words, or None if the folder is whole.
    """
    try:
        manifest = _manifest(folder)
        sizes = {name: entry["bytes"] if isinstance(entry, dict) else entry for name, entry in manifest.items()}
    except OSError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError):
        return f"its {MANIFEST} cannot be read"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"'{name}' is missing"
        if path.stat().st_size != size:
            return f"'{name}' has {path.stat().st_size} bytes instead of {size}"
    expected = {name: entry["blake2b"] for name, entry in manifest.items() if contents and isinstance(entry, dict)}

    def differs(name: str) -> bool:
        try:
            return digest(folder / name) != expected[name]
        except OSError:
            return True

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        damaged = [name for name, different in zip(expected, pool.map(differs, expected), strict=True) if different]
    return f"the content of '{damaged[0]}' is not what was written" if damaged else None


def is_whole_model(folder: Path) -> bool:
    """Return whether a folder holds a configuration and all of its weights: a model's, or an adapter's.

    Unlike `is_complete`, for a folder of any origin, without a manifest.
    """
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


def remove(folder: Path) -> None:
    """Delete a folder, where there is one.

    It loses its name first: killed in the middle, none of it is left under the old name.
    """
    doomed = folder.with_name(f".removed-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.is_dir():
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place when the block succeeds, and is removed otherwise.

    Args:
        folder: The folder; appears when every file of it has reached the disk. Its parents are made.
        replace: Whether it may hold files, which are deleted; otherwise it must be empty or not exist.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        apply_umask(unfinished)
        for path in (unfinished, *unfinished.rglob("*")):
            _sync(path)
        if replace:
            remove(folder)
        elif folder.is_dir():
            folder.rmdir()
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def apply_umask(folder: Path, files: str = "**/*.safetensors") -> None:
    """Let those read the weights in a folder who may read any new file; safetensors writes for the owner alone.

    Args:
        folder: The folder.
        files: Pattern of the files in it that were just written.
    """
    probe = folder / f".umask-{os.getpid()}"
    probe.unlink(missing_ok=True)
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.glob(files):
        if path.is_file():
            path.chmod(stat.S_IMODE(path.stat().st_mode) | usual)


def final_name(folder: Path) -> str:
    """Return the name of a folder, also while `whole_folder` has not put it in its place."""
    name = folder.resolve().name
    return name.removeprefix(".").removesuffix(".unfinished") if name.endswith(".unfinished") else name


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not content:
        raise ValueError("not a manifest")
    return content


def _is_whole_file(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):  # compares the header with the length of the file
            return True
    except (OSError, SafetensorError):
        return False


def portable(name: str, folder: Path) -> tuple[str, str]:
    """Return how a present file or folder is written down in another folder, which may be moved.

    Returns:
        The name as it was given, with ~ for the home folder; and the path from `folder` to it.
    """
    path = Path(name).expanduser()
    in_home = path.is_absolute() and path.is_relative_to(Path.home())
    given = f"~/{path.relative_to(Path.home()).as_posix()}" if in_home else name
    return given, os.path.relpath(path.resolve(), folder.resolve())


def found_again(name: str, place: str, folder: Path) -> str:
    """Return where a file or folder is that `portable` wrote down in `folder`: its whole path if it is found.

    A whole path is looked for first, which holds wherever `folder` is; then the same place from `folder`, which holds
    where both were moved together, and from where `folder` lay before its run was set aside; then the name from the
    current folder.
    """
    given, whole = Path(name).expanduser(), folder.resolve()
    before = Path(*(part for part in whole.parts if not part.startswith(EARLIER_RUN)))
    beside = [whole / place, Path(os.path.normpath(before / place))]  # `before` is there no more
    for path in ([given] if given.is_absolute() else []) + [*beside, given]:
        if path.exists():
            return str(path.resolve())
    return str(given) if name.startswith("~") else name
