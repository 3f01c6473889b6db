# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Dataclasses whose fields are options of a command line."""

import inspect
import re
import textwrap
from dataclasses import field, fields
from typing import Any, TypeVar, get_args, get_type_hints

from .fields import checked

__all__ = ["CheckedOptions", "documented", "option"]

T = TypeVar("T")


def option(default: Any, help: str) -> Any:
    """Return a dataclass field with a default and the text of `--help`."""
    return field(default=default, metadata={"help": help})


class CheckedOptions:
    """Base of a dataclass of options; the types and limits in its annotations are checked when it is made.

    Raises:
        TypeError: for a value of another type than its field's.
        ValueError: for a value out of range.
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, checked(name, getattr(self, name), hint))  # the dataclass may be frozen


def documented(cls: type[T]) -> type[T]:
    """Add an `Attributes:` section to the docstring of a dataclass: type, help and default of each option.

    `help(cls)` and the reference then show the texts of `--help`, which have their home in the fields. Options that the
    class inherits are left out.
    """
    hints = get_type_hints(cls)
    own = [each for each in fields(cls) if each.name in cls.__annotations__ and "help" in each.metadata]  # type: ignore[arg-type]
    lines = [inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:"]
    for each in own:
        help = each.metadata["help"]
        default = "" if "Default:" in help else f" Default: {each.default!r}."
        text = f"{each.name} ({_type_name(hints[each.name])}): {help}{default}"
        lines.append(textwrap.fill(text, 112, initial_indent=" " * 4, subsequent_indent=" " * 8))
    cls.__doc__ = "\n".join(lines)
    return cls


def _type_name(hint: Any) -> str:
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    return re.sub(r"Optional\[(\w+)\]", r"\1 | None", str(hint).replace("typing.", ""))
