# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext worlds`: make the embedded models and prompts of the detoxification recipe, and show where they are."""

from collections.abc import Sequence

from .parser import CommandParser

SUMMARY = "make the embedded models and prompts, offline"
DESCRIPTION = "Make the embedded models and prompts of the detoxification recipe, and show where they are."


def main(argv: Sequence[str] | None = None) -> None:
    """Make the models that are not in the cache yet, and print a table of paths and accuracies."""
    arguments = make_parser().parse_args(argv)

    from rich.console import Console
    from rich.table import Table

    from trl_ext.worlds import prepare

    table = Table("asset", "value")
    for name, value in prepare(arguments.cache_dir, arguments.seed)._asdict().items():
        table.add_row(name, f"{value:.1%}" if isinstance(value, float) else value)
    Console().print(table)


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = CommandParser("trl_ext worlds", description=DESCRIPTION)
    parser.add_argument("--cache_dir", help="folder of the models; default: $TRL_EXT_CACHE or ~/.cache/trl_ext/offline")
    parser.add_argument("--seed", type=int, default=0, help="seed of the grammar and of the training runs")
    return parser
