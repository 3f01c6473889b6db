# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The numbers of a run: a tile for each that matters, and a table of all."""

from collections.abc import Collection, Mapping
from typing import Any

from trl_ext.evaluation.quantities import (
    AVERAGE_NAME,
    compared,
    duration,
    interval_text,
    number_text,
    quantity,
    times_of,
    value_text,
)
from trl_ext.monitoring.metrics import finite

from .by_category import category_page
from .content import Report
from .markup import escape, folded, table
from .verdict import goal_text, is_met

__all__ = ["numbers_table", "tiles"]

_MOST_COMPONENTS = 4
Goals = Mapping[str, tuple[str, float]]


def tiles(report: Report) -> str:
    """Return one tile for each quantity measured before or after, for the KL and for the cost."""
    summary, goals = report.summary or {}, report.thresholds or {}
    names = [name for name in compared(summary) if _numbers(summary, name)]
    components = [name for name in names if name.startswith("rewards/")]
    if len(components) == 1 or len(components) > _MOST_COMPONENTS:  # the sum says it, or the table
        names = [name for name in names if name not in components]
    cells = [_compared_tile(name, summary, goals) for name in names]
    cells += [_single_tile(key, summary, goals) for key in ("gold_win_rate", "reward_model_accuracy")]
    cells += [_kl_tile(report), _cost_tile(summary)]
    content = "".join(f"<li>{cell}</li>" for cell in cells if cell)
    return f'<ul class="tiles">{content}</ul>' if content else ""


def _numbers(summary: Mapping[str, Any], name: str) -> bool:
    return any(finite(summary.get(f"{name}_{time}")) is not None for time in ("before", "after"))


def _compared_tile(name: str, summary: Mapping[str, Any], goals: Goals) -> str:
    known = [time for time in ("before", "after") if summary.get(f"{name}_{time}") is not None]
    values = {time: escape(value_text(name, summary[f"{name}_{time}"])) for time in known}
    if len(known) == 2:
        shown = f'<span class="old">{values["before"]}</span> <span class="to">→</span> <b>{values["after"]}</b>'
    else:
        shown = f'<b>{values[known[0]]}</b> <span class="unit">{known[0]}</span>'
    lines = []
    for time in known:
        if interval := interval_text(name, summary.get(f"{name}_ci95_{time}")):
            lines.append(f'<div class="small">95% {time}: {escape(interval)}</div>')
    lines += _average_line(name, summary)
    return _tile(name, shown, lines, _goal(f"{name}_after", summary, goals))


def _single_tile(key: str, summary: Mapping[str, Any], goals: Goals) -> str:
    if finite(summary.get(key)) is None:
        return ""
    interval = interval_text(key, [summary.get(f"{key}_low"), summary.get(f"{key}_high")])
    lines = [f'<div class="small">95%: {escape(interval)}</div>'] if interval else []
    return _tile(key, f"<b>{escape(value_text(key, summary[key]))}</b>", lines, _goal(key, summary, goals))


def _kl_tile(report: Report) -> str:
    summary, target = report.summary or {}, finite(report.kl_target)
    used = finite(summary.get("kl"))
    if used is None:
        return ""
    lines = []
    if target is not None:
        lines.append(f"target {number_text(target)}: {max(used / target, 0):.0%} of it used")
    if (least := finite(summary.get("kl_at_optimum"))) is not None:
        lines.append(f"least possible for this reward: {number_text(least)}")
    lines = [f'<div class="small">{line}</div>' for line in lines] + _average_line("kl", summary)
    return _tile("kl", f"<b>{number_text(used)}</b>", lines, _goal("kl", summary, report.thresholds or {}))


def _average_line(name: str, summary: Mapping[str, Any]) -> list[str]:
    value = finite(summary.get(f"{name}_ema"))
    return [] if value is None else [f'<div class="small">{AVERAGE_NAME}: {escape(value_text(name, value))}</div>']


def _cost_tile(summary: Mapping[str, Any]) -> str:
    episodes = finite(summary.get("episodes"))
    if episodes is None:
        return ""
    lines = []
    if seconds := finite(summary.get("train_seconds")):
        lines.append(f"trained in {duration(seconds)}, {episodes / seconds:,.0f} episodes a second")
    if whole := finite(summary.get("seconds")):
        lines.append(f"{duration(whole)} in all" if lines else f"in {duration(whole)}")
    if (memory := finite(summary.get("peak_memory_gib"))) is not None:
        lines.append(f"peak memory {memory:.1f} GiB")
    lines = [f'<div class="small">{line}</div>' for line in lines]
    return _tile("episodes", f"<b>{episodes:,.0f}</b>", lines, "")


def _tile(name: str, value: str, lines: list[str], goal: str) -> str:
    words = quantity(name)
    unit = f' <span class="unit">{escape(words.unit)}</span>' if words.unit else ""
    label = escape(words.label[:1].upper() + words.label[1:])
    return f'<h3>{label}{unit}</h3><div class="value">{value}</div>{"".join(lines)}{goal}'


def _goal(key: str, summary: Mapping[str, Any], goals: Goals) -> str:
    if key not in goals:
        return ""
    relation, limit = goals[key]
    met = is_met(key, summary.get(key), relation, limit)
    mark, word = ("✓", "passed") if met else ("✗", "missed")
    kind = "passed" if met else "failed"
    return f'<div class="goal {kind}">{mark} {word}: goal {escape(goal_text(key, relation, limit))}</div>'


def numbers_table(report: Report) -> str:
    """Return every number of the summary, behind a line that opens the tables."""
    summary, goals = report.summary or {}, report.thresholds or {}
    shown = {key: value for key, value in {**dict.fromkeys(goals), **summary}.items() if _is_scalar(value)}
    names = compared(shown)
    times = times_of(shown)
    paired = {f"{name}_{time}" for name in names for time in times}
    single = [key for key in shown if key not in paired]
    bar = "<th>goal</th><th>result</th>" if goals else ""
    heads = "".join(f"<th>{name}</th>" for name in times.values())
    content = table(
        f'<th></th>{heads}<th class="wide">after / before</th>{bar}',
        [_comparison_row(name, summary, goals, report.signed, times) for name in names],
    )
    content += table(f"<th></th><th>value</th>{bar}", [_value_row(key, summary, goals) for key in single])
    content += category_page(summary)
    return folded("All numbers", content)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, list | tuple | Mapping)


def _comparison_row(
    name: str, summary: Mapping[str, Any], goals: Goals, signed: Collection[str], times: Collection[str]
) -> str:
    before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
    old, new = finite(before), finite(after)
    ratio = None
    if name not in signed and old is not None and new is not None and old > 0 and new >= 0:
        ratio = new / old
    cells = "".join(_cell(name, summary.get(f"{name}_{time}")) for time in times)
    cells += f'<td class="wide">{number_text(ratio)}</td>'
    return f"<tr>{_name_cell(name)}{cells}{_goal_cells(f'{name}_after', summary, goals)}</tr>"


def _value_row(key: str, summary: Mapping[str, Any], goals: Goals) -> str:
    return f"<tr>{_name_cell(key)}{_cell(key, summary.get(key))}{_goal_cells(key, summary, goals)}</tr>"


def _cell(name: str, value: Any) -> str:
    return f"<td>{escape(value_text(name, value))}</td>"


def _goal_cells(key: str, summary: Mapping[str, Any], goals: Goals) -> str:
    if not goals:
        return ""
    if key not in goals:
        return "<td></td><td></td>"
    relation, limit = goals[key]
    met = is_met(key, summary.get(key), relation, limit)
    result = '<td class="passed">✓ passed</td>' if met else '<td class="failed">✗ missed</td>'
    return f"<td>{'≤' if relation == '<=' else '≥'} {escape(value_text(key, limit))}</td>{result}"


def _name_cell(name: str) -> str:
    words = quantity(name)
    unit = f' <span class="unit">{escape(words.unit)}</span>' if words.unit else ""
    return f"<td>{escape(words.label)}{unit}</td>"
