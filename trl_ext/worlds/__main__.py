# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`python -m trl_ext.worlds [--cache_dir DIR] [--seed N]`: make the offline models and show where they are."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import default_cache_dir, prepare


def main() -> None:
    """Run `prepare` and print its result."""
    parser = argparse.ArgumentParser(prog="python -m trl_ext.worlds", description=__doc__)
    parser.add_argument("--cache_dir", type=Path, default=default_cache_dir(), help="where the models are kept")
    parser.add_argument("--seed", type=int, default=0, help="of the grammar and of the training runs")
    arguments = parser.parse_args()
    assets = prepare(arguments.cache_dir, arguments.seed)
    table = Table("what", "value")
    for name, value in assets._asdict().items():
        table.add_row(name, f"{value:.1%}" if isinstance(value, float) else value)
    Console().print(table)


if __name__ == "__main__":
    main()
