# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A measured path as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_ext.evaluation.quantities import interval_text, value_text
from trl_ext.messages.printable import one_line

__all__ = ["print_points"]

_PIPE_WIDTH = 140  # of the table in a file
# Columns by the names of the points; names that are not here are the judge's, and follow the ratio.
_FIRST = {"eta": "eta", "reward": "reward", "kl": "KL", "kl_at_optimum": "least KL", "kl_ratio": "KL / least"}
_LAST = {
    "perplexity": "perplexity",
    "distinct_2": "distinct-2",
    "mean_length": "length",
    "empty_fraction": "empty",
    "terminated_fraction": "ended",
}


def print_points(points: Sequence[Mapping[str, Any]], console: Console, *, title: str) -> None:
    """Print one row for each point; columns without a number are left out."""
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    names = {name for point in points for name, value in point.items() if value is not None}
    own = [name for name in points[0] if name not in (*_FIRST, *_LAST) and not name.endswith("_ci95")]
    columns = {**_FIRST, **{name: one_line(name.replace("_", " "), 24) for name in own}, **_LAST}
    table = Table(title=Text(one_line(title, 120)), box=None, pad_edge=False, title_justify="left")
    shown = [name for name in columns if name in names]
    for name in shown:
        table.add_column(Text(columns[name]), justify="right")
    for point in points:
        table.add_row(*(Text(_cell(name, point)) for name in shown))
    console.print(table)


def _cell(name: str, point: Mapping[str, Any]) -> str:
    value, interval = point.get(name), point.get(f"{name}_ci95")
    if name == "eta":
        return f"{value:g}"
    return value_text(name, value) + (f" [{interval_text(name, interval)}]" if interval is not None else "")
