# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How a chat is shown: in a terminal answers stream, and anywhere else they are plain text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from trl_ext.messages.printable import one_line, printable
from trl_ext.running.side_by_side import Column, Tail, side_by_side

from .speaker import Answer
from .talk import Rewarded

__all__ = ["PlainScreen", "Screen", "TerminalScreen", "note", "screen_for"]


class Writing(Protocol):
    """Takes the answers of the models while they are made."""

    def __call__(self, number: int, text: str) -> None:
        """Take the whole text so far of the answer of model `number`."""


class Screen(Protocol):
    """A place that a chat is shown in."""

    def streaming(self, titles: Sequence[str], begun: str) -> "Iterator[Writing]":
        """Show answers while they are made; `begun` is the text that they continue."""

    def answers(self, scored: Sequence[Rewarded], begun: str) -> None:
        """Show finished answers, with their rewards."""

    def say(self, text: str) -> None:
        """Show a line of the program's own."""


def note(scored: Rewarded) -> str:
    """Return the line below an answer: its rewards by name, their sum where it says more, length and end."""
    parts = [f"{name} {_number(value)}" for name, value in scored.rewards.items()]
    if scored.rewards and (len(scored.rewards) > 1 or [*scored.rewards.values()] != [scored.total]):
        parts.append(f"sum {_number(scored.total)}")
    return " · ".join([*parts, _end(scored.answer)])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _end(answer: Answer) -> str:
    end = "" if answer.terminated else ", stopped" if answer.stopped else ", cut at the limit"
    return f"{answer.length} token{'' if answer.length == 1 else 's'}{end}"


class TerminalScreen:
    """A terminal: answers stream side by side, or one under the other where it is narrow."""

    def __init__(self, console: Console):
        self.console = console

    @contextmanager
    def streaming(self, titles: Sequence[str], begun: str) -> Iterator[Writing]:
        """Show answers while they are made, as much as the terminal holds; they vanish for the finished ones."""
        texts = [""] * len(titles)

        def view() -> Tail:
            columns = [Column(title, text, begun) for title, text in zip(titles, texts, strict=True)]
            return Tail(side_by_side(columns, self.console.width))

        with Live(view(), console=self.console, transient=True, auto_refresh=False) as live:

            def write(number: int, text: str) -> None:
                texts[number] = text
                live.update(view(), refresh=True)

            yield write

    def answers(self, scored: Sequence[Rewarded], begun: str) -> None:
        """Show finished answers, with their rewards."""
        columns = [Column(one.title, one.answer.text, begun, note(one)) for one in scored]
        self.console.print(side_by_side(columns, self.console.width))
        self.console.print()

    def say(self, text: str) -> None:
        """Show lines of the program's own."""
        self.console.print(Text(printable(text), style="italic"))


class PlainScreen:
    """A file, a pipe or a terminal without control sequences: finished answers as plain text.

    One answer without rewards is its text alone, for other programs to read.
    """

    def __init__(self, console: Console):
        self.console = console

    @contextmanager
    def streaming(self, titles: Sequence[str], begun: str) -> Iterator[Writing]:
        """Show nothing until the answers are finished."""
        yield lambda number, text: None

    def answers(self, scored: Sequence[Rewarded], begun: str) -> None:
        """Write finished answers, with names and rewards where there are several models or rewards."""
        for one in scored:
            if len(scored) > 1:
                print(f"{one_line(one.title)}:", file=self.console.file)
            print(printable(one.answer.text), file=self.console.file)
            if len(scored) > 1 or one.rewards:
                print(f"[{one_line(note(one))}]", file=self.console.file)
        self.console.file.flush()

    def say(self, text: str) -> None:
        """Write a line of the program's own."""
        print(printable(text), file=self.console.file, flush=True)


def screen_for(console: Console) -> TerminalScreen | PlainScreen:
    """Return the screen that fits a console."""
    live = console.is_terminal and not console.is_dumb_terminal
    return TerminalScreen(console) if live else PlainScreen(console)
