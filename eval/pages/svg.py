# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The frame of a picture: an SVG that is readable on light and dark pages, and 400 pixels wide.

A picture brings its own background, because an image follows the scheme of the system and not the switch of the page.
"""

from collections.abc import Iterable

WIDTH = 480
_STYLE = """
svg { color-scheme: light dark; } path, line { fill: none; stroke-width: 1; }
text { font: 14px system-ui, sans-serif; fill: #1c2128; } .faint { fill: #5b6470; font-size: 13px; }
.page { fill: #ffffff; stroke: #d5dae1; } .soft { fill: #f3f5f8; stroke: #d5dae1; }
.axis { stroke: #b8c0ca; } .blue { stroke: #1d5fd1; } .orange { stroke: #c2570c; } .grey { stroke: #6b7480; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ee; } .faint { fill: #9aa4b1; }
  .page { fill: #14171c; stroke: #363d47; } .soft { fill: #1e232a; stroke: #363d47; }
  .axis { stroke: #4a5360; } .blue { stroke: #7fb0ff; } .orange { stroke: #f5a05f; } .grey { stroke: #9aa4b1; } }
"""


def picture(title: str, height: int, parts: Iterable[str], style: str = "") -> str:
    """Return an SVG of `WIDTH` times `height` pixels.

    Args:
        title: What the picture shows, for readers who cannot see it.
        height: Height in pixels.
        parts: SVG elements.
        style: Further rules of CSS.
    """
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img">',
        f"<title>{title}</title><style>{_STYLE}{style}</style>",
        f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
