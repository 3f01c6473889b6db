# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The parser of the subcommands."""

import re
from argparse import ArgumentParser
from typing import Any, NoReturn

from trl_ext.messages.refusal import refuse
from trl_ext.messages.suggestion import suggestion

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
        refuse(self._in_plain_words(message))

    def _in_plain_words(self, message: str) -> str:
        """Return a message of argparse that names the option, and a similar one where it is misspelt."""
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            if not unknown[1].startswith("-"):
                return f"`{unknown[1]}` belongs to no option; `{self.prog} --help` lists them."
            options = [name for action in self._actions for name in action.option_strings]
            answer = suggestion(unknown[1], options) or f"`{self.prog} --help` lists all of them."
            return f"Unknown option `{unknown[1]}`: {answer}"
        if wrong := re.match(r"argument (--\w+).*: invalid (\w+) value: (.+)", message):
            return f"`{wrong[1]}` must be of type {wrong[2]}, got {wrong[3]}."
        if without_value := re.match(r"argument (--\w+).*: expected ", message):
            return f"`{without_value[1]}` needs a value."
        if missing := re.match(r"the following arguments are required: (.+)", message):
            return f"`{self.prog}` also needs {missing[1]}; see `--help`."
        return message
