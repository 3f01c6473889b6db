# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Make the runs, condense them into `runs.jsonl`, and print the table: `python -m eval.hacking --help`."""

import argparse
from collections import Counter
from pathlib import Path

from eval.pages.markers import insert
from trl_ext.files import read_json_lines, write_json_lines, write_text

from .runs import SETTINGS, make_runs
from .table import PART, RUNS, condensed, measured, table


def main() -> None:
    """Read the command line and do what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m eval.hacking", description=__doc__)
    parser.add_argument("--make", metavar="FOLDER", type=Path, help="make the runs that FOLDER does not hold yet")
    parser.add_argument("--condense", metavar="FOLDER", type=Path, help=f"write the runs of FOLDER to {RUNS.name}")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the table into a page of the documentation")
    given = parser.parse_args()
    if given.make is not None:
        make_runs(given.make, SETTINGS)
    if given.condense is not None:
        write_json_lines(RUNS, condensed(given.condense))
    if given.make is None:
        rows = read_json_lines(RUNS)
        result = measured(rows)
        print(f"{dict(Counter(row['label']['kind'] for row in rows))}\n\n{table(result)}\n")
        for monitor, row in result["monitors"].items():
            print(f"{monitor}: false alarms {row['false_alarms']}")
        if given.write is not None:
            write_text(given.write, insert(given.write.read_text(encoding="utf-8"), PART, table(result)))


if __name__ == "__main__":
    main()
