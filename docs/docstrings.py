# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Docstrings as the reference shows them: with the options of a configuration, and with links for [`Name`].

An extension of Griffe, which reads the source and runs none of it. mkdocs.yml names this file.
"""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import griffe

from trl_ext.messages.notes import quiet_libraries

REFERENCE = Path(__file__).parent / "reference"
_NAME = re.compile(r"\[`([\w.]+)`\](?![\[(])")


class Docstrings(griffe.Extension):
    """Complete the docstrings of the package once it is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Take docstrings with options from the classes, and link the names that the reference shows."""
        quiet_libraries()
        places = dict(_places(pkg))
        for each in _objects(pkg):
            if each.docstring is None:
                continue
            if isinstance(each, griffe.Class) and any(d.callable_path.endswith(".documented") for d in each.decorators):
                made = getattr(import_module(each.module.path), each.name)
                each.docstring.value = inspect.cleandoc(made.__doc__)
            each.docstring.value = _NAME.sub(lambda name: _link(name[1], places), each.docstring.value)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield from _objects(member)


def _places(pkg: griffe.Module) -> Iterator[tuple[str, str]]:
    """Yield names, and the paths under which the pages of the reference show them."""
    for page in sorted(REFERENCE.glob("*.md")):
        for path in re.findall(r"^::: trl_ext\.(\S+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            shown = pkg[path]
            members = [shown] if shown.is_class or shown.is_function else _public(shown)
            for member in members:
                yield member.name, member.path
                if member.is_class:
                    yield from ((f"{member.name}.{each.name}", each.path) for each in _public(member))


def _public(parent: Any) -> list[Any]:
    return [member for member in parent.members.values() if member.is_public]


def _link(name: str, places: dict[str, str]) -> str:
    path = places.get(name)
    return f"`{name}`" if path is None else f"[`{name}`][{path}]"
