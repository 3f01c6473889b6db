# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Dataclasses whose fields are options of a command line."""

from dataclasses import field
from typing import Any, get_type_hints

from .fields import checked

__all__ = ["CheckedOptions", "option"]


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
