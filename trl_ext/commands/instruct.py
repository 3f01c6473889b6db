# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext instruct`: the script `instruction_following.py` of the recipes."""

from collections.abc import Sequence

from .scripts import run_script

SUMMARY = "recipe: supervised fine-tuning, reward model, PPO and comparison"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script with the options that `instruction_following.py --help` lists."""
    run_script("instruct", argv)
