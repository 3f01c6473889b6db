# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Files that leave a machine (reports, summaries, model cards) name no folder of it."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

__all__ = ["short_name", "without_places"]

_NAME = r"[^\s/'\"`<>|:,;()\[\]{}]+"
# URLs stay as they are. At least two parts: "/3" and "and/or" are no paths; nor what follows `./` and `../`.
_PATH = re.compile(
    r"(?P<url>\b(?!file:)[a-zA-Z][a-zA-Z0-9+.-]*://\S+)"
    r"|(?P<quote>['\"`])(?P<quoted>(?:/|~/|[A-Za-z]:[\\/])[^'\"`\n]+)(?P=quote)"
    rf"|(?P<bare>(?<![\w./~)\]-])(?:~/{_NAME}|/{_NAME}/{_NAME})(?:/{_NAME})*/?|(?<!\w)[A-Za-z]:[\\/]{_NAME})"
)
_FILE_URL = re.compile(r"\bfile://(?:localhost)?(?=/)")
# A folder in the Hub's cache: models--org--name/snapshots/<commit>
_CACHED = re.compile(r"(?:models|datasets)--(.+)")


def short_name(path: str | Path) -> str:
    """Return the last part of an absolute path, or the Hub's name of a folder in its cache; other names as they are.

    >>> short_name("/home/me/models/gpt2"), short_name("org/name")
    ('gpt2', 'org/name')
    """
    text = str(path)
    windows = PureWindowsPath(text).is_absolute() and not text.startswith("/")
    if not windows and not text.startswith(("/", "~")):
        return text
    parts = PureWindowsPath(text).parts if windows else PurePosixPath(text).parts
    cached = next((match[1].replace("--", "/") for part in parts if (match := _CACHED.fullmatch(part))), None)
    return cached or parts[-1]


def without_places(value: Any, output_dir: str | Path | None = None) -> Any:
    """Return a copy of `value` in which each absolute path is relative to the run's folder, or is its last part alone.

    Args:
        value: Mappings, lists and tuples of any depth, with texts and other scalars.
        output_dir: Folder of the run; what lies in it or in the current folder keeps its path from there.
    """
    bases = [base for base in (output_dir, Path.cwd()) if base is not None]
    return _shown(value, [Path(base).expanduser().resolve() for base in bases])


def _shown(value: Any, bases: list[Path]) -> Any:
    if isinstance(value, Mapping):
        return {key: _shown(entry, bases) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_shown(entry, bases) for entry in value])
    if isinstance(value, Path):
        return _place(str(value), bases)
    return _in_text(value, bases) if isinstance(value, str) else value


def _in_text(text: str, bases: list[Path]) -> str:
    if "\n" not in text and (text.startswith("/") or PureWindowsPath(text).is_absolute()):
        return _place(text, bases)  # a whole path, which may contain spaces
    text = _FILE_URL.sub("", text)
    for folder, start in [*((str(base), "") for base in bases), (str(Path.home()), "~/")]:
        if folder != "/":  # also where a name in it contains a space
            text = re.sub(rf"(?<![\w.~-]){re.escape(folder)}/", start, text)

    def shown(match: re.Match[str]) -> str:
        if match["url"]:
            return match["url"]
        return (
            match["quote"] + _place(match["quoted"], bases) + match["quote"]
            if match["quote"]
            else _place(match["bare"], bases)
        )

    return _PATH.sub(shown, text)


def _place(path: str, bases: list[Path]) -> str:
    for base in bases:
        if Path(path).is_relative_to(base) and Path(path) != base and str(base) != "/":
            return Path(path).relative_to(base).as_posix()
    return short_name(path)
