# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The list of metrics in `docs/metrics.md`, from the glossary."""

from itertools import groupby

from trl_ext.monitoring.glossary import GLOSSARY, Metric

PAGE, PART = "metrics.md", "metrics"


def render() -> str:
    """Return the metrics in Markdown: a heading for each group and each metric, which links can point to."""
    lines: list[str] = []
    for group, metrics in _by_group().items():
        lines += [f"### {group}", ""]
        for metric in metrics:
            lines += _entry(metric)
    return "\n".join(lines).rstrip()


def anchor(name: str) -> str:
    """Return the anchor of a metric on the page, such as `rewards-mean` for `rewards/*/mean`."""
    return "-".join(part for part in name.replace("*", "").replace("/", " ").split())


def _by_group() -> dict[str, list[Metric]]:
    """Return the metrics by group, both in the order in which they first appear."""
    order = list(dict.fromkeys(metric.group for metric in GLOSSARY))
    ordered = sorted(GLOSSARY, key=lambda metric: order.index(metric.group))
    return {group: list(metrics) for group, metrics in groupby(ordered, key=lambda metric: metric.group)}


def _entry(metric: Metric) -> list[str]:
    return [
        f"#### `{metric.name}` {{ #{anchor(metric.name)} }}",
        "",
        f"**{metric.label.replace('*', 'NAME')}**, {metric.unit}. {metric.meaning}",
        "",
        f"- Healthy: {metric.healthy}",
        f"- Otherwise: {metric.advice}",
        "",
    ]
