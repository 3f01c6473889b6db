# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The table of bad inputs as a whole."""

import importlib
from pathlib import Path

from tests.bad_inputs.case import Case


def cases() -> set[tuple[str, str, str]]:
    """Every case in the lists of this folder's modules: module, name, message."""
    found = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.bad_inputs.{path.stem}")
        for value in vars(module).values():
            rows = value if isinstance(value, list) else []
            found |= {(path.stem, row.name, row.message) for row in rows if isinstance(row, Case)}
    return found


def test_the_table_has_150_cases_of_one_line_each() -> None:
    assert len(cases()) >= 150
    assert [message for *_, message in cases() if "\n" in message or not message.strip()] == []
