# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The first fault of a data file, for messages."""

import gzip
import json
import zlib
from pathlib import Path

__all__ = ["file_ending", "find_fault", "is_empty"]


def file_ending(path: Path) -> str:
    """Return the ending that tells the format of a file: that before ".gz" of a compressed one."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def is_empty(path: Path) -> bool:
    """Return whether a file, compressed or not, holds nothing."""
    if path.suffix != ".gz":
        return path.stat().st_size == 0
    try:
        with gzip.open(path) as file:
            return not file.read(1)
    except (OSError, EOFError, zlib.error):
        return False  # damaged, which `find_fault` says


def find_fault(path: Path) -> str | None:
    """Return the first fault of a data file, in words that end before "of 'FILE'"; None if there is none.

    Args:
        path: A text file: JSON, JSON lines, CSV, TSV or lines of text. Other files have no rows to look at.
    """
    ending = file_ending(path)
    if ending not in (".json", ".jsonl", ".csv", ".tsv", ".txt"):
        return None
    try:
        lines = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines()
    except (OSError, EOFError, zlib.error):
        return "There is damage in the gzip compression"
    for number, line in enumerate(lines, start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"Byte {error.start + 1} is not UTF-8 in line {number}"
    if ending not in (".json", ".jsonl"):
        return None
    text = b"\n".join(lines).decode("utf-8-sig")
    return _fault_of_array(text) if text.lstrip().startswith("[") else _fault_of_lines(text)


def _fault_of_lines(text: str) -> str | None:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            return f"There is no JSON ({error.msg}, column {error.colno}) in line {number}"
        if not isinstance(row, dict):
            return f"There is {_kind(row)} instead of an object in line {number}"
    return None


def _fault_of_array(text: str) -> str | None:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        return f"There is no JSON ({error.msg}, column {error.colno}) in line {error.lineno}"
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            return f"There is {_kind(row)} instead of an object in row {number}"
    return None


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "null")
