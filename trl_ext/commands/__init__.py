# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The command line `trl_ext`: one module for each subcommand.

A module has `SUMMARY`, its line of `trl_ext --help`, `make_parser`, from which the shell completes, and `main`, which
takes the arguments after the subcommand. It imports torch and transformers inside functions, so that `--help` answers
at once. To add a subcommand, write a module and add a line to `COMMANDS`.
"""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from trl_ext import __version__
from trl_ext.messages.notes import plain_warnings, quiet_libraries
from trl_ext.messages.suggestion import suggestion

from . import (
    average,
    chat,
    check_reward,
    compare,
    completion,
    detox,
    instruct,
    interpolate,
    merge,
    plan,
    ppo,
    report,
    worlds,
)
from .parser import CommandParser

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "ppo": ppo,
    "detox": detox,
    "instruct": instruct,
    "chat": chat,
    "compare": compare,
    "check-reward": check_reward,
    "report": report,
    "plan": plan,
    "merge": merge,
    "average": average,
    "interpolate": interpolate,
    "worlds": worlds,
    "completion": completion,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the subcommand that the command line names.

    Args:
        argv: Subcommand and its arguments; None for those of the process.

    Raises:
        SystemExit: with status 2, after one line, for input that cannot be used; with 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    quiet_libraries()
    if given and given[0] in COMMANDS:
        options = {"commands": COMMANDS} if given[0] == "completion" else {}
        try:
            with plain_warnings():
                COMMANDS[given[0]].main(given[1:], **options)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise SystemExit(130) from None
        return
    width = max(map(len, COMMANDS)) + 2
    commands = [f"  {name:{width}}{module.SUMMARY}" for name, module in COMMANDS.items()]
    parser = CommandParser(
        "trl_ext",
        usage="%(prog)s COMMAND [OPTION ...]",
        description="PPO for language models.",
        epilog="\n".join(["commands:", *commands]),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trl_ext {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below; `trl_ext COMMAND --help`")
    name = parser.parse_known_args(given or ["--help"])[0].command
    parser.error(f"There is no command `{name}`: {suggestion(name, COMMANDS) or '`trl_ext --help` lists all of them.'}")
