# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The main plots of a run in one picture, for a README, a model card or a talk."""

import re
from pathlib import Path

from trl_ext.files import write_text

from .content import Report
from .markup import escape
from .report import plots_of
from .verdict import verdict

__all__ = ["write_picture"]

_SHOWN = ("reward", "kl", "frontier", "histogram")
_MOST = 3
_HEAD, _MARGIN = 56, 12  # points

_PICTURE = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
  viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" aria-label="{title}">
<style>
:root {{ color: #1c2128; --page: #ffffff; }}
@media (prefers-color-scheme: dark) {{ :root {{ color: #e6e9ee; --page: #14171c; }} }}
text {{ font-family: system-ui, sans-serif; fill: currentColor; }}
</style>
<rect width="100%" height="100%" rx="8" fill="var(--page)"/>
<text x="{margin:g}" y="24" font-size="15" font-weight="600">{title}</text>
{plots}
</svg>
"""


def write_picture(path: Path, report: Report) -> Path:
    """Write reward, KL, and reward over KL as one SVG for light and dark pages, whole or not at all.

    Args:
        path: The SVG file.
        report: The run.

    Returns:
        The path.

    Raises:
        ValueError: If the run has logged nothing that could be drawn, or `path` does not end in `.svg`.
    """
    if path.suffix.lower() != ".svg":
        raise ValueError(f"'{path}' does not end in .svg; the picture is written as SVG.")
    report = report.cleaned(path.parent)
    found = {plot.slug: plot for plot in plots_of(report)}
    plots = [found[slug] for slug in _SHOWN if slug in found][:_MOST]
    if not plots:
        raise ValueError("The run has logged neither reward nor KL yet: there is nothing to draw.")
    x, heights, parts = float(_MARGIN), [], []
    for plot in plots:
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', plot.svg).groups())  # type: ignore[union-attr]
        place = f'<svg x="{x:g}" y="{_HEAD}" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">'
        drawing = re.sub(r"<svg\b[^>]*>", place, plot.svg, count=1)
        heading = f'<text x="{x + 4:g}" y="{_HEAD - 8}" font-size="12">{escape(plot.title)}</text>'
        parts.append(heading + drawing)
        heights.append(height)
        x += width + _MARGIN
    title = escape(verdict(report).split(". ")[0].rstrip("."))
    content = _PICTURE.format(
        width=x, height=_HEAD + max(heights) + _MARGIN, title=title, margin=_MARGIN, plots="\n".join(parts)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)
    return path
