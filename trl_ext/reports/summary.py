# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The summary of a finished run, as JSON and as a table of before and after."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_ext.evaluation.quantities import compared, interval_text, quantity, times_of, value_text
from trl_ext.files import without_nan, write_json
from trl_ext.messages.places import without_places
from trl_ext.messages.redaction import redacted

from .by_category import category_table
from .verdict import goal_text, is_met


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary` as JSON: secrets hidden, no path of the machine, NaN and infinity as null."""
    write_json(path, without_places(redacted(without_nan(summary)), path.parent))


def print_before_after(
    title: str, summary: Mapping[str, Any], goals: Mapping[str, tuple[str, float]], console: Console | None = None
) -> None:
    """Print the numbers before and after training with their intervals and goals, and the verdict.

    Args:
        title: Above the table.
        summary: The content of `summary.json`.
        goals: Relation and limit by name: `{"toxicity_after": ("<=", 0.1)}`.
        console: Where to print; the standard output by default.
    """
    console = console or Console()
    times = times_of(summary)
    table = Table("", *times.values(), *(("goal", "") if goals else ()), title=title)
    for name in compared(summary):
        cells = [_cell(name, summary, time) for time in times]
        goal = goals.get(f"{name}_after")
        limit = mark = ""
        if goal is not None:
            limit = goal_text(name, *goal)
            is_passed = is_met(name, summary.get(f"{name}_after"), *goal)
            mark = "[green]passed[/]" if is_passed else "[red]missed[/]"
        table.add_row(Text(_label(name)), *cells, *((limit, mark) if goals else ()))
    optimum = summary.get("kl_at_optimum")
    least = "" if optimum is None else f"least possible for this reward: {value_text('kl', optimum)}"
    if summary.get("kl") is not None:
        kls = [value_text("kl", summary[name]) for name in ("kl", "kl_ema")[: len(times) - 1]]
        table.add_row(_label("kl"), "0", *kls, *((least, "") if goals else ()))
    if table.row_count:
        console.print(table)
    for name, rows in (summary.get("by_category") or {}).items():
        console.print(category_table(name, rows))
    if summary.get("verdict"):
        console.print(Text(str(summary["verdict"])))


def _label(name: str) -> str:
    words = quantity(name)
    return f"{words.label} ({words.unit})" if words.unit else words.label


def _cell(name: str, summary: Mapping[str, Any], time: str) -> str:
    value = value_text(name, summary.get(f"{name}_{time}"))
    interval = interval_text(name, summary.get(f"{name}_ci95_{time}"))
    return f"{value}\n{interval}" if interval else value
