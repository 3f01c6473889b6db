# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The first fault of a data file, for messages."""

import json
from pathlib import Path

__all__ = ["find_fault"]


def find_fault(path: Path) -> str | None:
    """Return the first fault of a data file, in words that end before "of 'FILE'"; None if there is none.

    Args:
        path: A text file: JSON, JSON lines, CSV or lines of text. Other files have no rows to look at.
    """
    if path.suffix not in (".json", ".jsonl", ".csv", ".txt"):
        return None
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"Byte {error.start + 1} is not UTF-8 in line {number}"
    if path.suffix not in (".json", ".jsonl"):
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
