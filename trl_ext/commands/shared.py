# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Options that several subcommands have: which prompts, and what is measured on them."""

from typing import Any


def add_prompts(data: Any, *, required: bool) -> None:
    """Add the options of the prompts to a group; `required`: whether `--prompts` must be given."""
    data.add_argument(
        "--prompts", required=required, help="file, folder written by save_to_disk, or dataset of the Hub"
    )
    data.add_argument("--prompt_column", default="prompt", help="column of the prompts (prompt)")
    data.add_argument("--split", default="train", help="split, or a slice such as test[:100] (train)")
    data.add_argument("--chat_instruction", help="text with {prompt} that makes each prompt a message of the user")


def add_measures(what: Any) -> None:
    """Add the options of rewards and of a toxicity classifier to a group."""
    what.add_argument(
        "--reward", action="append", default=[], metavar="SPEC",
        help="reward, repeatable: FILE.py:function, toxicity:MODEL, preference:MODEL or a URL",
    )  # fmt: skip
    what.add_argument("--reward_weights", nargs="+", type=float, help="weight of each reward in the sum (1 each)")
    what.add_argument("--toxicity_model", help="classifier that judges the toxicity; never the training reward")
    what.add_argument("--toxic_label", help="its toxic label, if the names of its labels do not tell")
