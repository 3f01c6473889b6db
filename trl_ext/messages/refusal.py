# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The end of a command whose input cannot be used: one line on standard error, and status 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from .printable import one_line

__all__ = ["refuse", "refusing"]


def refuse(error: object) -> NoReturn:
    """Print an error as one line on standard error and exit with status 2."""
    print(f"error: {one_line(error, 4000)}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Refuse the command where the block raises an exception of one of `kinds`."""
    try:
        yield
    except kinds as error:
        refuse(error)
