# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Completions before and after training, sorted by what became of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from trl_ext.evaluation.quantities import number_text
from trl_ext.monitoring.metrics import finite
from trl_ext.monitoring.samples import as_text

from .markup import escape, folded

if TYPE_CHECKING:
    from trl_ext.evaluation.sampling import Samples
    from trl_ext.text.rows import Text

__all__ = ["Sorted", "samples_section", "sorted_samples"]

Better = Literal["lower", "higher"]

_LIMIT = 0.5  # a judge's probability from which on a completion counts as toxic
_LONG = 1200  # characters from which on a text scrolls in itself
_SAME = 0.1  # of the initial scores' standard deviation

# In the order of the page; the last is folded.
_MEANING: dict[Better, dict[str, str]] = {
    "lower": {
        "fixed": "toxic before, not toxic after",
        "shortened": "not toxic after, but less than half as long",
        "still toxic": "toxic before and after",
        "worse": "not toxic before, toxic after",
        "fine": "not toxic before or after",
    },
    "higher": {
        "better": "a higher score after",
        "shortened": "no lower score, but less than half as long",
        "worse": "a lower score after",
        "same": "about the same score",
    },
}


class Sorted(NamedTuple):
    """Samples to show, and how many there are of each group.

    Attributes:
        samples: Dictionaries with `group`, `prompt`, `before`, `after`, `score_before`, `score_after`.
        counts: Number of samples in each group, those not shown included.
    """

    samples: list[dict[str, Any]]
    counts: dict[str, int]


def sorted_samples(
    before: Samples,
    after: Samples,
    scores_before: Sequence[float | None],
    scores_after: Sequence[float | None],
    limit: int,
    better: Better,
) -> Sorted:
    """Sort pairs of completions, and choose which to show.

    Args:
        before: Completions of the initial policy.
        after: Completions of the trained policy on the same prompts.
        scores_before, scores_after: One score for each.
        limit: Most samples to show; every group gets its share of them.
        better: Which scores are better.
    """
    names = ("prompt", "before", "after", "score_before", "score_after")
    rows = zip(before.prompts, before.completions, after.completions, scores_before, scores_after, strict=True)
    samples: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in rows]
    tolerance = _tolerance(samples)
    for sample in samples:
        sample["group"] = group_of(sample, better, tolerance)
    counts = Counter(sample["group"] for sample in samples)
    shown = _shares({group: counts[group] for group in _MEANING[better]}, limit)
    kept: Counter[str] = Counter()
    chosen = []
    for sample in samples:
        kept[sample["group"]] += 1
        if kept[sample["group"]] <= shown[sample["group"]]:
            chosen.append(sample)
    return Sorted(chosen, {group: counts[group] for group in _MEANING[better]})


def group_of(sample: Mapping[str, Any], better: Better, tolerance: float = 0.0) -> str:
    """Return the group of a pair of completions.

    Args:
        sample: `before`, `after`, `score_before` and `score_after`.
        better: Which scores are better.
        tolerance: Difference of scores up to which they count as the same, where higher is better.
    """
    old, new = finite(sample.get("score_before")), finite(sample.get("score_after"))
    words = [len(as_text(sample.get(time) or "").split()) for time in ("before", "after")]
    is_shorter = words[0] >= 3 and words[1] < words[0] / 2
    if better == "lower":
        was_toxic, is_toxic = old is not None and old > _LIMIT, new is not None and new > _LIMIT
        if is_toxic:
            return "still toxic" if was_toxic else "worse"
        return "shortened" if is_shorter else "fixed" if was_toxic else "fine"
    change = 0.0 if old is None or new is None else new - old
    if change < -tolerance:
        return "worse"
    return "shortened" if is_shorter else "better" if change > tolerance else "same"


def _tolerance(samples: Sequence[Mapping[str, Any]]) -> float:
    scores = [score for sample in samples if (score := finite(sample.get("score_before"))) is not None]
    return _SAME * statistics.pstdev(scores) if scores else 0.0


def _shares(counts: Mapping[str, int], limit: int) -> Counter[str]:
    """Return how many of each group to show: one of each in turn, until `limit` or all."""
    shares: Counter[str] = Counter()
    while sum(shares.values()) < min(limit, sum(counts.values())):
        for group, count in counts.items():
            if shares[group] < count and sum(shares.values()) < limit:
                shares[group] += 1
    return shares


def samples_section(
    samples: Sequence[Mapping[str, Any]], counts: Mapping[str, int] | None, better: Better, score_name: str
) -> str:
    """Return the samples as HTML, group by group.

    Args:
        samples: As `sorted_samples` returns them; a sample without `group` is sorted here.
        counts: Number of samples of each group; those of `samples` by default.
        better: Which scores are better.
        score_name: Name of the scores.
    """
    if not samples:
        return ""
    tolerance = _tolerance(samples)
    groups = [str(sample.get("group") or group_of(sample, better, tolerance)) for sample in samples]
    numbers = Counter(groups) if counts is None else Counter(counts)
    parts = []
    for group, meaning in _MEANING[better].items():
        cards = "".join(_card(sample, score_name) for sample, own in zip(samples, groups, strict=True) if own == group)
        shown = groups.count(group)
        some = f"; {shown} shown" if shown < numbers[group] else ""
        heading = f"{group[:1].upper()}{group[1:]}: {numbers[group]} of {numbers.total()}"
        if not cards:
            continue
        if group == list(_MEANING[better])[-1]:
            parts.append(folded(f"{heading} <span class='unit'>({meaning}{some})</span>", cards))
        else:
            parts.append(f'<h3>{heading} <span class="unit">({meaning}{some})</span></h3>{cards}')
    return "\n".join(parts)


def _card(sample: Mapping[str, Any], score_name: str) -> str:
    prompt = sample.get("prompt")
    together = isinstance(prompt, str)  # one reads prompt and completion as one text
    above = "" if together or prompt is None else f'<div class="label">prompt</div>{_text(prompt)}'
    sides = []
    for time in ("before", "after"):
        score = sample.get(f"score_{time}")
        shown = "" if finite(score) is None else f" · {escape(score_name)} {escape(number_text(score))}"
        body = _text(sample.get(time), prompt if together else None)
        sides.append(f'<div class="{time}"><div class="label">{time}{shown}</div>{body}</div>')
    return f'<div class="sample">{above}<div class="pair">{"".join(sides)}</div></div>'


def _text(entry: Text | None, prompt: Any = None) -> str:
    text = "" if entry is None else as_text(entry)
    start = "" if prompt is None else f'<span class="prompt">{escape(prompt)}</span>'
    said = escape(text) if text.strip() else '<span class="empty">(empty)</span>'
    gap = " " if start and not text.strip() else ""
    scrolls = ' tabindex="0"' if len(text) + len(start) > _LONG else ""
    return f'<div class="text" dir="auto"{scrolls}>{start}{gap}{said}</div>'
