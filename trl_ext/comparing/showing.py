# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A comparison as a table, as samples side by side, and as JSON."""

import math
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_ext.evaluation.intervals import Interval
from trl_ext.files import without_nan
from trl_ext.messages.printable import one_line
from trl_ext.rewards.base import prompt_text
from trl_ext.running.side_by_side import Column, side_by_side

from .measuring import Comparison, Side, WinRate

__all__ = ["as_json", "comparison_table", "print_comparison", "win_rate_line"]

_WIDE, _NARROW = 100, 72  # characters
_PIPE_WIDTH = 120  # of the table in a file


def print_comparison(comparison: Comparison, console: Console, *, show: int = 0, judge: str | None = None) -> None:
    """Print the table, the win rate and the first `show` samples of a comparison."""
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    for number in range(min(show, len(comparison.sides[0].samples.prompts))):
        _print_sample(comparison, number, console)
    console.print(comparison_table(comparison, console.width))
    if comparison.win_rate is not None:
        console.print(Text(win_rate_line(comparison.win_rate, judge)))


def comparison_table(comparison: Comparison, width: int) -> Table:
    """Return a table of all measures for `width` characters; a star marks differences whose interval excludes 0.

    Where the terminal is narrow, the models' own intervals are left out, and then that of the difference is below it.
    """
    wide, narrow = width >= _WIDE, width < _NARROW
    count = len(comparison.sides[0].samples.prompts)
    table = Table(
        title=f"{count} prompt{'' if count == 1 else 's'}, 95% intervals (bootstrap, Wilson's of fractions)",
        caption_justify="left",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    for title in [side.title for side in comparison.sides]:
        table.add_column(
            Text(title), justify="right", overflow="fold", max_width=None if wide else 10 if narrow else 14
        )
    table.add_column("difference", justify="right", no_wrap=True)
    named = [name for name in comparison.measures if name.startswith("rewards/")]
    for name, row in comparison.measures.items():
        if name == "reward" and len(named) == 1 and row == comparison.measures[named[0]]:
            continue  # a single reward is its own sum
        difference = row["difference"]
        differs = difference.low > 0 or difference.high < 0
        digits = _digits(row)
        cells = [
            _interval(row[key], digits) if wide else _number(row[key].estimate, digits) for key in ("model", "baseline")
        ]
        if differs:
            table.caption = "* the interval of the difference excludes 0"
        mark = "*" if differs else " "
        ends = f"[{difference.low:.{digits}f}, {difference.high:.{digits}f}]"
        text = (
            f"{_number(difference.estimate, digits)}{mark}\n{ends} " if narrow else _interval(difference, digits) + mark
        )
        label = one_line(name, 60).replace("_", " ") if narrow else one_line(name, 60)
        table.add_row(Text(label), *cells, Text(text, style="bold" if differs else ""))
    return table


def win_rate_line(win_rate: WinRate, judge: str | None) -> str:
    """Return the win rate in a sentence."""
    rate, counts = win_rate.interval, win_rate.counts
    by = f" by {one_line(judge, 80)}" if judge else ""
    line = f"Win rate{by}: {rate.estimate:.1%} [{rate.low:.1%}, {rate.high:.1%}]: "
    line += f"{counts.wins} won, {counts.ties} tied, {counts.losses} lost"
    line += f", {counts.left_out} not judged" if counts.left_out else ""
    if win_rate.disagreements:
        line += f"; {win_rate.disagreements} ties are verdicts that changed with the order of the answers"
    return line + "."


def as_json(comparison: Comparison, settings: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison for a file: settings, measures, win rate and samples."""
    ours, theirs = comparison.sides
    win_rate = None
    if (found := comparison.win_rate) is not None:
        win_rate = found.counts.as_dict() | {"bootstrap": found.interval.as_dict()}
        win_rate |= {"disagreements_between_orders": found.disagreements}
    outcomes = comparison.win_rate.outcomes if comparison.win_rate else [None] * len(ours.samples.prompts)
    samples = [
        {
            "prompt": prompt,
            "model": ours.samples.completions[i],
            "baseline": theirs.samples.completions[i],
            "scores": {"model": _scores(ours, i), "baseline": _scores(theirs, i)},
            **({"outcome": outcomes[i]} if comparison.win_rate else {}),
        }
        for i, prompt in enumerate(ours.samples.prompts)
    ]
    return without_nan(
        {
            "settings": settings,
            "measures": {
                name: {key: interval.as_dict() for key, interval in row.items()}
                for name, row in comparison.measures.items()
            },
            "win_rate": win_rate,
            "samples": samples,
        }
    )


def _scores(side: Side, number: int) -> dict[str, float | None]:
    scores = {name: values[number] for name, values in side.rewards.items()}
    return scores if side.toxicity is None else scores | {"toxicity": side.toxicity[number]}


def _print_sample(comparison: Comparison, number: int, console: Console) -> None:
    prompt = prompt_text(comparison.sides[0].samples.prompts[number])
    columns = []
    for side in comparison.sides:
        scores = _scores(side, number)
        note = " · ".join(
            [f"{name} {_number(value)}" for name, value in scores.items()] + [f"{side.samples.lengths[number]} tokens"]
        )
        columns.append(Column(side.title, side.samples.completions[number], note=note))
    console.print(Text(f"{number + 1}. {one_line(prompt, 1000)}", style="italic"))
    console.print(side_by_side(columns, console.width))
    console.print()


def _digits(row: dict[str, Interval]) -> int:
    """Return the decimals of a measure, the same for its whole row."""
    return 1 if max(_finite(row)) >= 10 else 3


def _finite(row: dict[str, Interval]) -> Iterator[float]:
    yield 0.0
    for key in ("model", "baseline"):
        if math.isfinite(row[key].estimate):
            yield abs(row[key].estimate)


def _number(value: float | None, digits: int = 3) -> str:
    return "none" if value is None else "-" if math.isnan(value) else f"{value:.{digits}f}"


def _interval(interval: Interval, digits: int) -> str:
    if math.isnan(interval.estimate):
        return "not defined"
    return f"{interval.estimate:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
