# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The summary of a finished run, as JSON and as a table of before and after."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trl_ext.files import without_nan, write_json
from trl_ext.messages.redaction import redacted


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary` as JSON, secrets hidden, NaN and infinity as null."""
    write_json(path, redacted(without_nan(summary)))


def print_before_after(
    title: str, summary: Mapping[str, Any], goals: Mapping[str, tuple[str, float]], console: Console | None = None
) -> None:
    """Print the numbers before and after training, with the goal of each, and what the run cost.

    Args:
        title: Above the table.
        summary: Numbers by name; each goal `<name>_after` has a `<name>_before`. Also `kl`, `kl_at_optimum`,
            `episodes` and `seconds`.
        goals: Relation and limit by name: `{"toxicity_after": ("<=", 0.1)}`.
        console: Where to print; the standard output by default.
    """
    table = Table("", "before", "after", "goal", "", title=title)
    for key, (relation, limit) in goals.items():
        name = key.removesuffix("_after")
        before, after = summary[f"{name}_before"], summary[key]
        met = after <= limit if relation == "<=" else after >= limit
        mark = "[green]met[/]" if met else "[red]missed[/]"
        table.add_row(name.replace("_", " "), f"{before:.3g}", f"{after:.3g}", f"{relation} {limit:.3g}", mark)
    optimum = summary.get("kl_at_optimum")
    least = "" if optimum is None else f"least possible for this reward: {optimum:.3g}"
    table.add_row("kl (nats per completion)", "0", f"{summary['kl']:.3g}", least, "")
    (console or Console()).print(table)
    print(f"{summary['episodes']:,} episodes, {summary['seconds']:.0f} seconds")
