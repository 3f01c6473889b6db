# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Files that are written whole or not at all, as text, JSON or JSON lines."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["read_json_lines", "without_nan", "write_json", "write_json_lines", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, so that a reader or a kill at any moment sees the old file or the new one, never half.

    Args:
        path: The file; its folder must exist.
        text: Its whole content.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so that the next write replaces what a kill left
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, as `write_text` does.

    Raises:
        TypeError: if `content` holds a value that JSON has no form for.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, as `write_text` does."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[Any]:
    """Return one value for each line of a JSON-lines file that is not blank.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a line is not UTF-8 or not JSON.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def without_nan(value: Any) -> Any:
    """Return `value` with None for each NaN and infinity, at any depth: strict readers of JSON refuse both."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
