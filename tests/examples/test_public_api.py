# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Examples use documented names only, and each of them is listed."""

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.architecture import imported_modules

from .conftest import EXAMPLES

REFERENCE = EXAMPLES.parent / "docs" / "reference"
FILES = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


def source_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return "\n".join(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell, flags=re.MULTILINE) for cell in cells)


def documented_modules() -> set[str]:
    """Modules and packages whose public names the reference lists."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    return set(re.findall(r"^::: (\S+)", pages, flags=re.MULTILINE))


def undocumented(source: str) -> list[str]:
    """Names of the library that a source imports and that no page of the reference has."""
    found, documented = [], documented_modules()
    for _, name in imported_modules(ast.parse(source), "example.py"):
        module, _, last = name.rpartition(".")
        if name.split(".")[0] != "trl_ext":
            continue
        thing: Any = getattr(import_module(module), last)
        exported = getattr(import_module(module), "__all__", [last])
        has_page = not documented.isdisjoint({module, thing.__module__}) or module == "trl_ext"
        if last.startswith("_") or last not in exported or not thing.__doc__ or not has_page:
            found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_examples_import_documented_names_only(path: Path) -> None:
    source = source_of(path)
    assert undocumented(source) == []
    attributes = [node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    assert [name for name in attributes if name.startswith("_") and not name.startswith("__")] == []


def test_a_name_that_no_page_documents_is_found() -> None:
    assert undocumented("from trl_ext.running.policy import policy_of") == ["trl_ext.running.policy.policy_of"]
    assert undocumented("from trl_ext.experience.rollout import minibatch_rows, collate") == []


def test_every_example_is_listed() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in FILES if f"[`{path.name}`]({path.name})" not in readme] == []
