# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext check-reward SPEC`: try a reward on a few samples before a run."""

import sys
from argparse import Namespace
from collections.abc import Sequence

from trl_ext.messages.notes import tell
from trl_ext.messages.refusal import refusing

from .parser import CommandParser

SUMMARY = "try a reward on samples, with its spread and its speed"
DESCRIPTION = """Try a reward by name before a run: what it returns, its spread, its time a sample, and what is wrong
with it. The samples are texts given here, rows of a dataset, or four stock texts, one of them empty."""
EPILOG = """Exit status: 0 where the reward can be used (there may be warnings), 1 where it is found and fails or breaks
the contract of reward functions, 2 where it, the data or the model is not found."""


def main(argv: Sequence[str] | None = None) -> None:
    """Try the reward and print a report.

    Raises:
        SystemExit: with status 1 for a reward that cannot be used, 2 for input that cannot be used.
    """
    arguments = make_parser().parse_args(argv)
    with refusing(ValueError, TypeError, RuntimeError, ImportError, OSError):
        _run(arguments)


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = CommandParser("trl_ext check-reward", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "spec",
        metavar="SPEC",
        help="FILE.py:function, package.module:function, toxicity:MODEL, preference:MODEL or URL",
    )
    parser.add_argument("--prompt", action="append", default=[], help="prompt of a sample, repeatable")
    parser.add_argument("--completion", action="append", default=[], help="its completion, repeatable")
    parser.add_argument("--dataset_name", help="dataset of prompts: a file, a folder or a name on the Hub")
    parser.add_argument("--split", default="train", help="split, or a slice such as test[:100] (train)")
    parser.add_argument("--prompt_column", default="prompt", help="column of the prompts (prompt)")
    parser.add_argument("--completion_column", default="completion", help="column of completions (completion)")
    parser.add_argument("--num_samples", type=int, default=16, help="the first so many rows (16)")
    parser.add_argument("--model", help="makes the completions of the prompts: output folder of a run, or any model")
    parser.add_argument("--device", help="of that model, such as cpu (the accelerator, if there is one)")
    return parser


def _run(arguments: Namespace) -> None:
    from rich.console import Console

    from trl_ext.rewards.by_name import check_reward_name
    from trl_ext.running.bars import without_bars
    from trl_ext.running.reward_trial import BrokenReward, describe, find_samples, try_named_reward

    if not sys.stderr.isatty():
        without_bars()
    options = vars(arguments)
    spec = options.pop("spec")
    check_reward_name(spec)
    samples = find_samples(**options)
    try:
        check = try_named_reward(spec, samples)
    except BrokenReward as error:
        tell(f"error: {error}")
        raise SystemExit(1) from None
    describe(check, samples, Console())
