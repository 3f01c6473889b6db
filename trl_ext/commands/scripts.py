# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The recipes' scripts as subcommands."""

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from trl_ext.messages.notes import tell
from trl_ext.messages.refusal import refuse
from trl_ext.running.help import help_parser, read_recipes
from trl_ext.running.places import RECIPES

__all__ = ["SCRIPTS", "run_script", "script_of"]

SCRIPTS = {"ppo": "ppo.py", "detox": "detoxification.py", "instruct": "instruction_following.py"}


def run_script(command: str, argv: Sequence[str] | None = None) -> None:
    """Run a recipe's script as the main program, or print the help of its options.

    Args:
        command: Name of the subcommand.
        argv: Its arguments; None for those of the process.

    Raises:
        SystemExit: with status 2, where the script is missing.
    """
    given, script = list(sys.argv[1:] if argv is None else argv), script_of(command)
    if {"-h", "--help"} & set(given):
        print(help_parser(read_recipes()[command]).format_help(), end="")
        return
    if "--help_all" not in given and int(os.environ.get("RANK", 0)) == 0:
        tell("... loading the libraries")  # which takes seconds
    sys.argv = [str(script), *given]
    runpy.run_path(str(script), run_name="__main__")


def script_of(command: str) -> Path:
    """Return the script of a recipe's subcommand; refuse the command where it is missing."""
    script = RECIPES / SCRIPTS[command]
    if not script.is_file():
        refuse(f"'{script}' is missing; install trl_ext again.")
    return script
