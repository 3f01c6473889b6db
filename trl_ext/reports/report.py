# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The report of a run as one HTML file without scripts or outside resources."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_ext.evaluation.sampling import Samples
from trl_ext.files import write_text
from trl_ext.messages.printable import printable
from trl_ext.messages.redaction import redacted, redacted_text
from trl_ext.monitoring.metrics import finite
from trl_ext.monitoring.samples import as_text

if TYPE_CHECKING:
    from .plots import Plot

_UNITS = {
    "mean_length": "tokens",
    "kl": "nats per completion",
    "kl_target": "nats per completion",
    "kl_at_optimum": "nats per completion",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --page: #ffffff; --soft: #f3f5f8; --line: #d5dae1; --faint: #5b6470;
  --good: #0b7a4b; --bad: #b42318; --before: #c2570c; --after: #1d5fd1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --page: #14171c; --soft: #1e232a; --line: #363d47; --faint: #9aa4b1;
    --good: #4ccb92; --bad: #ff8a7d; --before: #f5a05f; --after: #7fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
.scroll { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
th, .unit, figcaption, .label { color: var(--faint); font-weight: normal; font-size: .85rem; }
.passed { color: var(--good); } .failed { color: var(--bad); font-weight: 600; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
figure { margin: 0; padding: .6rem; background: var(--soft); border-radius: .5rem; }
figure h3 { margin: 0 0 .3rem; font-size: .95rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 34rem; margin: 0 auto; }
.sample { margin: 0 0 1rem; padding: .6rem .8rem; background: var(--soft); border-radius: .5rem; }
.pair { display: grid; gap: .3rem 1.2rem; grid-template-columns: 1fr 1fr; margin-top: .5rem; }
.pair > div { border-left: 3px solid var(--after); padding-left: .6rem; min-width: 0; }
.pair > div:first-child { border-color: var(--before); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 16rem; overflow-y: auto; }
.empty { color: var(--faint); font-style: italic; }
details td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top;
  font-size: .85rem; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } .wide { display: none; }
  th, td { padding-right: .5rem; font-size: .9rem; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    log_history: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    histograms: Mapping[str, Sequence[float]] | None = None,
    kl_target: float | None = None,
    frontier: Iterable[Sequence[float]] | None = None,
    config: Mapping[str, Any] | None = None,
    notes: str | Sequence[str] | None = None,
    thresholds: Mapping[str, tuple[str, float]] | None = None,
    signed: Collection[str] = (),
    score_name: str = "toxicity",
    extra_plots: Sequence[Plot | None] = (),
) -> Path:
    """Write the report of a run. Missing parts are left out; NaN and infinite numbers are not drawn.

    Args:
        path: The HTML file, written whole or not at all.
        title: Heading of the page.
        log_history: `trainer.state.log_history`.
        summary: Numbers by name. Names that end in `_before` and `_after` share a row.
        samples: Dictionaries with `prompt`, `before`, `after` (texts or conversations), `score_before`, `score_after`.
        histograms: Scores by name, for example `{"before": [...], "after": [...]}`.
        kl_target: Target of the KL controller, in nats per completion.
        frontier: (KL, reward) pairs of the optimum.
        config: Settings of the run. Secrets are hidden.
        notes: One or several paragraphs of text.
        thresholds: Goals by name in `summary`: `{"kl": ("<=", 1.5), "mean_length_after": (">=", 7.5)}`. A value that is
            missing or NaN has failed.
        signed: Names in `summary`, without `_before`, of numbers that may be negative: no quotient is shown.
        score_name: Name of the scores of `samples` and `histograms`.
        extra_plots: Further plots, drawn first.

    Returns:
        The path of the report.

    Raises:
        ValueError: If the relation of a threshold is neither `<=` nor `>=`.
    """
    # matplotlib takes a second to import, and only the end of a run needs it.
    from . import plots

    figures: list[Plot | None] = [
        *extra_plots,
        plots.frontier_plot(frontier, log_history),
        plots.histogram_plot(histograms or {}, score_name),
        *plots.training_plots(log_history, kl_target),
    ]
    paragraphs = [notes] if isinstance(notes, str) else notes or ()
    sections = [
        *(f'<p class="text" dir="auto">{_escape(redacted_text(paragraph))}</p>' for paragraph in paragraphs),
        _summary_section(summary or {}, thresholds or {}, signed),
        _plots_section([figure for figure in figures if figure is not None]),
        _samples_section(samples, score_name),
        _config_section(config or {}),
    ]
    body = "\n".join(section for section in sections if section)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, _PAGE.format(title=_escape(title), style=_STYLE, body=body))
    return target


def paired_samples(
    before: Samples, after: Samples, scores_before: Sequence[float], scores_after: Sequence[float], limit: int
) -> list[dict[str, Any]]:
    """Return the first `limit` samples before and after training, for `write_report(samples=...)`."""
    names = ("prompt", "before", "after", "score_before", "score_after")
    rows = zip(before.prompts, before.completions, after.completions, scores_before, scores_after, strict=True)
    return [dict(zip(names, row, strict=True)) for row in list(rows)[:limit]]


def _summary_section(
    summary: Mapping[str, Any], thresholds: Mapping[str, tuple[str, float]], signed: Collection[str]
) -> str:
    shown = {**dict.fromkeys(thresholds), **summary}
    names = [key.removesuffix("_before").removesuffix("_after") for key in (*summary, *thresholds)]
    compared = [name for name in dict.fromkeys(names) if f"{name}_before" in shown or f"{name}_after" in shown]
    paired = {f"{name}_{time}" for name in compared for time in ("before", "after")}
    single = [key for key in (*summary, *thresholds) if key not in paired]
    comparison = [_comparison_row(name, summary, thresholds, name not in signed) for name in compared]
    values = [_value_row(key, summary, thresholds) for key in dict.fromkeys(single)]
    bar = "<th>limit</th><th>result</th>" if thresholds else ""
    tables = [
        _table(f'<th></th><th>before</th><th>after</th><th class="wide">after / before</th>{bar}', comparison),
        _table(f"<th></th><th>value</th>{bar}", values),
    ]
    return _section("Summary", "\n".join(table for table in tables if table))


def _comparison_row(
    name: str, summary: Mapping[str, Any], thresholds: Mapping[str, tuple[str, float]], with_quotient: bool
) -> str:
    before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
    old, new = finite(before), finite(after)
    ratio = None
    if with_quotient and old is not None and new is not None and old > 0 and new >= 0:
        ratio = new / old
    cells = f'<td>{_number(before)}</td><td>{_number(after)}</td><td class="wide">{_number(ratio)}</td>'
    return f"<tr>{_name_cell(name)}{cells}{_threshold_cells(f'{name}_after', summary, thresholds)}</tr>"


def _value_row(key: str, summary: Mapping[str, Any], thresholds: Mapping[str, tuple[str, float]]) -> str:
    cells = f"<td>{_number(summary.get(key))}</td>{_threshold_cells(key, summary, thresholds)}"
    return f"<tr>{_name_cell(key)}{cells}</tr>"


def _threshold_cells(key: str, summary: Mapping[str, Any], thresholds: Mapping[str, tuple[str, float]]) -> str:
    if not thresholds:
        return ""
    if key not in thresholds:
        return "<td></td><td></td>"
    relation, limit = thresholds[key]
    if relation not in ("<=", ">="):
        raise ValueError(f"The threshold of {key!r} has the relation {relation!r}; use '<=' or '>='.")
    value = finite(summary.get(key))
    passed = value is not None and (value <= limit if relation == "<=" else value >= limit)
    verdict = (
        '<td class="passed">✓<span class="wide"> passed</span></td>'
        if passed
        else '<td class="failed">✗<span class="wide"> failed</span></td>'
    )
    return f"<td>{'≤' if relation == '<=' else '≥'} {_number(limit)}</td>{verdict}"


def _name_cell(name: str) -> str:
    unit = f' <span class="unit">{_UNITS[name]}</span>' if name in _UNITS else ""
    return f"<td>{_escape(name.replace('_', ' '))}{unit}</td>"


def _plots_section(figures: Sequence[Plot]) -> str:
    cells = [
        f'<figure id="plot-{plot.slug}"><h3>{_escape(plot.title)}</h3>\n'
        f'{plot.svg.replace("<svg", f"""<svg role="img" aria-label="{_escape(plot.title)}" """, 1)}\n'
        f"<figcaption>{_escape(plot.caption)}</figcaption></figure>"
        for plot in figures
    ]
    return _section("Training", f'<div class="plots">{"".join(cells)}</div>' if cells else "")


def _samples_section(samples: Sequence[Mapping[str, Any]], score_name: str) -> str:
    cards = []
    for sample in samples:
        sides = [
            f'<div><div class="label">{time}{_score(sample.get(f"score_{time}"), score_name)}</div>'
            f"{_text(sample.get(time))}</div>"
            for time in ("before", "after")
        ]
        prompt = f'<div class="label">prompt</div>{_text(sample.get("prompt"))}'
        cards.append(f'<div class="sample">{prompt}<div class="pair">{"".join(sides)}</div></div>')
    return _section("Before and after", "\n".join(cards))


def _score(score: Any, name: str) -> str:
    return "" if score is None else f" · {_escape(name)} {_number(score)}"


def _text(entry: Any) -> str:
    text = "" if entry is None else as_text(entry)
    if not text.strip():
        return '<div class="empty">(empty)</div>'
    return f'<div class="text" dir="auto">{_escape(text)}</div>'


def _config_section(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    shown = redacted(config)
    rows = [f"<tr><td>{_escape(key)}</td><td>{_escape(_setting(shown[key]))}</td></tr>" for key in shown]
    return f"<details><summary>Configuration</summary>{_table('<th>field</th><th>value</th>', rows)}</details>"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>\n{content}</section>" if content else ""


def _table(header: str, rows: Sequence[str]) -> str:
    return f'<div class="scroll"><table><tr>{header}</tr>{"".join(rows)}</table></div>' if rows else ""


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, Real):
        return _escape(value)
    if isinstance(value, Integral):
        return f"{int(value):,}"
    return f"{float(value):,.0f}" if abs(float(value)) >= 1000 else f"{float(value):.3g}"


def _escape(value: Any) -> str:
    return html.escape(printable(as_text(value)))
