# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext detox`: the script `detoxification.py` of the recipes."""

from collections.abc import Sequence

from .scripts import run_script

SUMMARY = "recipe: detoxify a language model and measure its cost"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script with the options that `detoxification.py --help` lists."""
    run_script("detox", argv)
