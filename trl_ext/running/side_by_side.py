# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Texts of several models in columns, or one under the other where the terminal is narrow.

Only bold, dim and italic: colours that are chosen here could vanish on the user's background.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from trl_ext.messages.printable import one_line, printable

__all__ = ["LEAST_WIDTH", "Column", "Tail", "side_by_side"]

LEAST_WIDTH = 36  # characters of a column; with less, texts stand one under the other


class Column(NamedTuple):
    """The text of one model.

    Attributes:
        title: Name of the model.
        text: Its text.
        begun: Text of the user that the model's continues; shown dim.
        note: Line below it.
    """

    title: str
    text: str
    begun: str = ""
    note: str = ""


def side_by_side(columns: Sequence[Column], width: int) -> RenderableType:
    """Return the texts of models for a terminal of `width` characters.

    Text of a model is shown without control characters, and never read as markup.
    """
    if len(columns) == 1:
        return Group(_text(columns[0]), *_note(columns[0]))
    if width < len(columns) * LEAST_WIDTH:
        lines: list[RenderableType] = []
        for column in columns:
            lines += [Rule(_title(column), align="left", style="dim"), _text(column), *_note(column)]
        return Group(*lines)
    table = Table(box=None, expand=True, show_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(_title(column), ratio=1, overflow="fold", header_style="bold")
    table.add_row(*(_text(column) for column in columns))
    if any(column.note for column in columns):
        table.add_row(*(Padding(Group(*_note(column)), (0, 0, 0, 0)) for column in columns))
    return table


class Tail:
    """The last lines of something that may be longer than the terminal.

    Args:
        inner: All of it.
        margin: Lines of the terminal that stay free.
    """

    def __init__(self, inner: RenderableType, margin: int = 2):
        self.inner, self.margin = inner, margin

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.inner, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - self.margin) :]:
            yield from line
            yield Segment.line()


def _title(column: Column) -> Text:
    return Text(one_line(column.title, 60), style="bold")


def _text(column: Column) -> Text:
    return Text.assemble((printable(column.begun), "dim"), printable(column.text), overflow="fold")


def _note(column: Column) -> list[Text]:
    return [Text(one_line(column.note, 1000), style="dim", overflow="fold")] if column.note else []
