# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The recipes' scripts as subcommands."""

import runpy
import sys
from collections.abc import Sequence

from trl_ext.messages.refusal import refuse
from trl_ext.running.places import RECIPES

__all__ = ["run_script"]


def run_script(name: str, argv: Sequence[str] | None = None) -> None:
    """Run a recipe's script as the main program.

    Args:
        name: File name of the script.
        argv: Its arguments; None for those of the process.

    Raises:
        SystemExit: with status 2, where the script is missing.
    """
    script = RECIPES / name
    if not script.is_file():
        refuse(f"'{script}' is missing; install trl_ext again.")
    sys.argv = [str(script), *(sys.argv[1:] if argv is None else argv)]
    runpy.run_path(str(script), run_name="__main__")
