# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext completion SHELL`: print the script with which a shell completes subcommands, options and values."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

from trl_ext.running.help import help_parser, read_recipes

from .parser import CommandParser

SUMMARY = "print the completion script of bash or zsh"
DESCRIPTION = "Print a script with which the shell completes subcommands, options, choices and file names."
EPILOG = (
    "With bash: trl_ext completion bash > ~/.local/share/bash-completion/completions/trl_ext. With zsh the script goes "
    "into a folder of $fpath, as _trl_ext."
)


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = CommandParser("trl_ext completion", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("shell", choices=["bash", "zsh"], help="the shell")
    return parser


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Any] | None = None) -> None:
    """Print the script.

    Args:
        argv: Arguments after the subcommand.
        commands: Modules of all subcommands, which this one cannot import.
    """
    arguments = make_parser().parse_args(argv)

    import shtab

    print(shtab.complete(_whole_parser(commands or {}), shell=arguments.shell))


def _whole_parser(commands: Mapping[str, Any]) -> ArgumentParser:
    """Return a parser with every subcommand and its options; text is completed by the names of files."""
    import shtab

    parser, recipes = ArgumentParser("trl_ext"), read_recipes()
    parser.add_argument("--version", action="store_true", help="show the version")
    subcommands: Any = parser.add_subparsers()
    for name, module in commands.items():
        own = help_parser(recipes[name], everything=True) if name in recipes else module.make_parser()
        part = subcommands.add_parser(name, parents=[own], add_help=False, help=module.SUMMARY)
        for action in part._actions:
            if action.choices is None and action.nargs != 0 and action.type is None:
                action.complete = shtab.FILE
    return parser
