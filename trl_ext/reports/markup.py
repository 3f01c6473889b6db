# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Pieces of HTML: escaped text, sections and tables."""

import html
import re
from collections.abc import Sequence
from typing import Any

from trl_ext.messages.printable import printable
from trl_ext.monitoring.samples import as_text

__all__ = ["escape", "folded", "prose", "section", "table"]


def escape(value: Any) -> str:
    """Return any value as text that cannot become markup, without control and invisible characters."""
    return html.escape(printable(as_text(value)))


def prose(text: Any) -> str:
    """Return text as `escape` does, with names between backquotes set as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text))


def section(slug: str, heading: str, content: str) -> str:
    """Return a section of the page, empty where it has no content."""
    return f'<section id="{slug}"><h2>{heading}</h2>\n{content}</section>' if content else ""


def folded(summary: str, content: str) -> str:
    """Return content behind a line that opens it, empty where there is none."""
    return f"<details><summary>{summary}</summary>{content}</details>" if content else ""


def table(header: str, rows: Sequence[str], kind: str = "") -> str:
    """Return a table that scrolls sideways in itself, empty where it has no rows.

    Args:
        header: Its `th` cells.
        rows: Its `tr` elements.
        kind: Class of the table.
    """
    if not rows:
        return ""
    return f'<div class="scroll" tabindex="0"><table class="{kind}"><tr>{header}</tr>{"".join(rows)}</table></div>'
