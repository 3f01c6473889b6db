# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext ppo`: the script `ppo.py` of the recipes."""

from collections.abc import Sequence

from .scripts import run_script

SUMMARY = "recipe: PPO with prompts and rewards of your own"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script with the options that `ppo.py --help` lists."""
    run_script("ppo", argv)
