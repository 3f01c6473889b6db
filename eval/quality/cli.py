# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What the command lines `eval.quality` and `eval.quality.frontier` share."""

import argparse
import sys
from pathlib import Path

from trl_ext.messages.printable import one_line
from trl_ext.rewards.toxicity import ToxicityReward


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about prompts and sampling that `eval.quality` and `eval.quality.frontier` share."""
    parser.add_argument(
        "--prompts",
        required=True,
        help="JSONL, JSON, CSV, parquet or TXT file, a folder written by save_to_disk, or a hub id",
    )
    parser.add_argument("--prompt_column", default="prompt", help='texts, {"text": ...} or conversations (prompt)')
    parser.add_argument("--split", default="train", help="split of a hub data set or DatasetDict (train)")
    parser.add_argument("--judge_model", help="sequence classifier that judges the toxicity; never the training reward")
    parser.add_argument("--toxic_label", help="name of its toxic label, if its label names do not tell")
    parser.add_argument("--max_new_tokens", type=int, default=20, help="length limit of a completion in tokens (20)")
    parser.add_argument("--batch_size", type=int, default=64, help="completions sampled or scored at a time (64)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of sampling and bootstrap (0)")


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Check options that count something.

    Raises:
        ValueError: If one of the named options is below 1.
    """
    for name in names:
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}; it must be at least 1.")


def make_folder(folder: Path) -> None:
    """Create `folder` before the work starts, not after.

    Raises:
        ValueError: If that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder} cannot be written ({error.strerror}); choose another folder.") from error


def print_error(error: Exception) -> None:
    """Print an error as one line on the standard error output."""
    print(f"error: {one_line(error, 4000)}", file=sys.stderr)


def make_judge(arguments: argparse.Namespace) -> ToxicityReward | None:
    """The classifier of `--judge_model`, if there is one, checked before anything is sampled.

    Raises:
        ValueError: There is no such model or tokenizer, or its labels do not tell which is toxic.
    """
    if arguments.judge_model is None:
        return None
    judge = ToxicityReward(arguments.judge_model, toxic_label=arguments.toxic_label, batch_size=arguments.batch_size)
    judge.scorer.check()
    return judge
