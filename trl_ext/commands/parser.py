# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The parser of the subcommands."""

from argparse import ArgumentParser
from typing import Any, NoReturn

from trl_ext.messages.refusal import refuse

__all__ = ["CommandParser"]


class CommandParser(ArgumentParser):
    """A parser that answers wrong input with one line and status 2, without the usage in front.

    Args:
        prog: The command as the user types it.
        options: Keyword arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            SystemExit: with status 2, always.
        """
        refuse(message)
