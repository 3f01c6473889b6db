# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Text of a model, a dataset or an exception, made safe for a terminal and a log."""

import re
import traceback
from pathlib import Path

from .redaction import redacted_text

# Whole sequences first (ECMA-48): strings such as titles and links with their terminator, then colours and movements.
_SEQUENCES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]?"
)
# Control characters but tab and newline; soft hyphens, joiners, fillers and other characters without a width; marks,
# embeddings, overrides and isolates of direction; separators of lines; variation selectors; tags.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: object) -> str:
    """Return `text` without control sequences and invisible characters.

    Control characters other than tab and newline, overrides of direction and characters without a width are left out.
    Lone surrogates, which cannot be written to any file, become the replacement character.
    """
    seen = _SEQUENCES.sub("", str(text).replace("\r\n", "\n"))
    return _SURROGATES.sub("\ufffd", _UNSEEN.sub("", seen))


def one_line(text: object, limit: int = 300) -> str:
    """Return `printable` text with its secrets hidden, in one line of at most `limit` characters."""
    line = " ".join(redacted_text(printable(str(text)[: 20 * limit])).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def first_line(error: BaseException, limit: int = 160) -> str:
    """Return the first line of a library's message without its final period, or the exception's class."""
    lines = [line for line in printable(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return one_line(text, limit).rstrip(".:")


def error_text(error: BaseException) -> str:
    """Return the class of an exception and its message, in one line."""
    try:
        message = one_line(error)
    except (Exception, SystemExit):  # the exception's own `__str__` may fail
        message = "(no message)"
    name = one_line(type(error).__name__)
    return f"{name}: {message}" if message else name


def line_of(error: BaseException) -> str:
    """Return "line N of 'FILE' raises " for the innermost frame in a file of the user's own; nothing without one."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(Path(frame.filename))]
    return f"line {frames[-1].lineno} of '{Path(frames[-1].filename).name}' raises " if frames else ""


def _is_users(file: Path) -> bool:
    libraries = (Path(__file__).resolve().parents[1], Path(traceback.__file__).parent)
    installed = "site-packages" in file.parts or any(file.is_relative_to(folder) for folder in libraries)
    return file.suffix == ".py" and not installed


def brief(value: object, limit: int = 80) -> str:
    """Return the `repr` of any object, in one line of at most `limit` characters."""
    try:
        return one_line(repr(value), limit)
    except (Exception, SystemExit):
        return f"a {type(value).__name__}"


def is_plain_name(name: str) -> bool:
    """Return whether `name` is a file name without parents, a root or invisible characters."""
    if name in ("", ".", "..") or name.startswith("~") or name != name.strip():
        return False
    return printable(name) == name and not set(name) & set("/\\:\n\t") and len(name.encode()) <= 255
