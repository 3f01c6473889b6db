# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Scores by category of the prompts in the summary, the terminal and the page: the same numbers and the same words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from trl_ext.evaluation.quantities import interval_text, quantity, value_text
from trl_ext.messages.printable import one_line
from trl_ext.monitoring.categories import CategoryChange, category_changes, losses_text

from .markup import escape, table

__all__ = ["category_page", "category_sentences", "category_summary", "category_table"]

_MOST_ROWS = 20  # in the terminal
Scores = Sequence[float | None]


def category_summary(
    categories: Sequence[Any], scores: Mapping[str, tuple[Scores, Scores]], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return `by_category` of a summary: for each score and category the means before and after, and what is lost.

    Args:
        categories: Category of each of N prompts.
        scores: N scores before and N after, by the score's name in the summary.
        seed: Of the intervals.

    Returns:
        By score and category `before`, `after`, `change_ci95` (ends of the interval of the change, which holds for all
        categories of a score at once; None with too few prompts), `lost` and `prompts`; the largest loss first.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, (before, after) in scores.items():
        higher = quantity(name).better != "lower"
        changes = category_changes(categories, before, after, higher_is_better=higher, seed=seed)
        found[name] = {change.category: _as_row(change) for change in changes}
    return found


def category_sentences(summary: Mapping[str, Any]) -> list[str]:
    """Return for each score of `by_category` which categories lost."""
    return [
        losses_text([_from_row(category, row) for category, row in rows.items()], quantity(name).label)
        for name, rows in (summary.get("by_category") or {}).items()
        if rows
    ]


def category_table(name: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the categories of a score for the terminal; of many those that lost most."""
    rates = any("win_rate" in row for row in rows.values())
    label = quantity(name).label
    shown = f", the {_MOST_ROWS} lowest of {len(rows)}" if len(rows) > _MOST_ROWS else ""
    title = f"{label[:1].upper()}{label[1:]} by category, before and after{shown}"
    columns = ("category", "before", "after", "95% of the change", *(["win rate"] if rates else []), "prompts", "")
    found = Table(*columns, title=title)
    for category, row in list(rows.items())[:_MOST_ROWS]:
        cells = [value_text(name, row[time]) for time in ("before", "after")]
        cells.append(interval_text(name, row["change_ci95"]))
        cells += [value_text("gold_win_rate", row["win_rate"])] if rates else []
        mark = "[red]lost[/]" if row["lost"] else ""
        found.add_row(Text(one_line(category, 40)), *cells, str(row["prompts"]), mark)
    return found


def category_page(summary: Mapping[str, Any]) -> str:
    """Return a table for each score of `by_category`, for the page."""
    parts = []
    for name, rows in (summary.get("by_category") or {}).items():
        rates = any("win_rate" in row for row in rows.values())
        lines = []
        for category, row in rows.items():
            cells = [value_text(name, row.get(time)) for time in ("before", "after")]
            cells.append(interval_text(name, row.get("change_ci95")))
            cells += [value_text("gold_win_rate", row.get("win_rate"))] if rates else []
            cells.append(value_text("", row.get("prompts")))
            mark = '<td class="failed">✗ lost</td>' if row.get("lost") else "<td></td>"
            lines.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in [category, *cells])}{mark}</tr>")
        heads = ("before", "after", "95% interval of the change", *(["win rate"] if rates else []), "prompts", "")
        header = "".join(f"<th>{head}</th>" for head in (f"{escape(quantity(name).label)} by category", *heads))
        parts.append(table(header, lines))
    return "".join(parts)


def _as_row(change: CategoryChange) -> dict[str, Any]:
    known = math.isfinite(change.low) and math.isfinite(change.high)
    return {
        "before": change.before,
        "after": change.after,
        "change_ci95": [change.low, change.high] if known else None,
        "lost": change.lost,
        "prompts": change.prompts,
    }


def _from_row(category: str, row: Mapping[str, Any]) -> CategoryChange:
    low, high = row["change_ci95"] or (-math.inf, math.inf)
    return CategoryChange(category, row["prompts"], row["before"], row["after"], low, high, row["lost"])
