# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext average OUTPUT MODEL MODEL ...`: average the weights of reward models."""

import sys
from collections.abc import Sequence

from trl_ext.messages.notes import telling_warnings
from trl_ext.messages.refusal import refusing

from .parser import CommandParser

SUMMARY = "average the weights of reward models (WARM)"


def main(argv: Sequence[str] | None = None) -> None:
    """Average, and print the folder of the result."""
    arguments = make_parser().parse_args(argv)

    from trl_ext.rewards.warm import average_reward_models
    from trl_ext.running.bars import without_bars

    if not sys.stderr.isatty():
        without_bars()
    with refusing(OSError, ValueError), telling_warnings():
        print(average_reward_models(arguments.models, arguments.output))


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = CommandParser("trl_ext average", description="Average reward models of one origin (arXiv 2401.12187).")
    parser.add_argument("output", help="folder for the average")
    parser.add_argument("models", nargs="+", help="folders of two or more reward models, or of their LoRA adapters")
    return parser
