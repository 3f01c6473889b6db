# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a run is doing right now: one line at the bottom of a terminal, or a line now and then in a log file.

The activities under way form a stack: a training, in it the sampling of a rollout. In a terminal they are one status
line, which moves several times a second and stays below everything that is printed or warned about meanwhile. In a log
file, a notebook or CI, a line is written when a long activity begins, and whenever nothing was written for a while.
"""

import logging
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, TextIO

import datasets
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from tqdm.std import Bar
from transformers.utils import logging as hf_logging

__all__ = ["CONSOLE", "Activity", "Console", "duration", "library_bars_off", "line_width"]

# Seconds without a line after which a log file gets one.
SILENCE = 30.0
_REDRAW_SECONDS = 0.1


class Activity:
    """Something that a run is doing.

    Args:
        name: What it is, as the beginning of a sentence: "sampling".
        total: Units to be done; None where that is not known.
        unit: What is counted, in the plural.
        done: Units that are done already.
    """

    def __init__(self, name: str, total: int | None = None, unit: str = "", done: int = 0):
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.tokens = 0
        self.begin = time.monotonic()

    def advance(self, n: int = 1, tokens: int = 0) -> None:
        """Count `n` more units and `tokens` more tokens as done; negative numbers take back what has to be repeated."""
        self.done += n
        self.tokens += tokens

    def text(self) -> str:
        """Return the activity in a few words."""
        words = self.name
        if self.total is not None:
            words = f"{words} {self.done:,}/{self.total:,} {self.unit}".rstrip()
        if self.tokens > 0:
            seconds = max(time.monotonic() - self.begin, 1e-3)
            words += f", {self.tokens:,} tokens, {self.tokens / seconds:,.0f} tok/s"
        return words

    def graph(self) -> str:
        """Return a bar of ten characters."""
        unicode = "utf" in (getattr(sys.stderr, "encoding", None) or "").lower()
        share = min(max(self.done / max(self.total or 1, 1), 0.0), 1.0)
        return f"|{Bar(share, 10, charset=Bar.UTF if unicode else Bar.ASCII)}|"


class Console:
    """The activities of this process, and the place where lines about a run are written.

    Args:
        silence: Seconds without a line after which a log file gets one.
    """

    def __init__(self, silence: float = SILENCE):
        self.silence = silence
        self._activities: list[Activity] = []
        self._lock = threading.RLock()
        self._display: _StatusLine | _Lines | None = None

    @contextmanager
    def activity(
        self,
        name: str,
        total: int | None = None,
        unit: str = "",
        *,
        done: int = 0,
        bars: bool = True,
        long: bool = False,
    ) -> Iterator[Activity]:
        """Show an activity during a block, below those that it is part of.

        Args:
            name, total, unit, done: As in [`Activity`].
            bars: Whether a terminal may show a status line; without, it gets lines, as a log file does. The outermost
                activity decides.
            long: Whether a log file is told when it begins.
        """
        activity = Activity(name, total, unit, done)
        with self._lock:
            self._activities.append(activity)
            if self._display is None:
                on_terminal = bars and sys.stderr.isatty()
                self._display = _StatusLine(self._activities) if on_terminal else _Lines(self._activities, self.silence)
            if long:
                self._display.announce(activity)
        try:
            yield activity
        finally:
            with self._lock:
                self._activities.remove(activity)
                if not self._activities:
                    self._display.close()
                    self._display = None

    def now(self, name: str, *, long: bool = False) -> None:
        """Go on to the next part of the innermost activity; without an activity nothing happens.

        Args:
            name: What it is, as in [`Activity`].
            long: Whether a log file is told.
        """
        with self._lock:
            if self._display is not None:
                self._activities[-1].name, self._activities[-1].begin = name, time.monotonic()
                if long:
                    self._display.announce(self._activities[-1])

    def write(self, text: str, file: TextIO | None = None) -> None:
        """Write lines above the status line.

        Args:
            text: The lines.
            file: The standard output by default.
        """
        with self._lock:
            tqdm.write(text, file=file or sys.stdout)
            (file or sys.stdout).flush()
            if isinstance(self._display, _Lines):
                self._display.last = time.monotonic()


class _Ticker:
    """Calls `tick` every `seconds` in a thread of its own, until `close`."""

    def __init__(self, seconds: float) -> None:
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(seconds,), daemon=True)

    def _run(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            self.tick()

    def tick(self) -> None:
        """Show the activities."""

    def close(self) -> None:
        """End the display."""
        self._closed.set()
        self._thread.join()


class _StatusLine(_Ticker):
    """The last line of a terminal; prints, warnings and logged messages go above it."""

    def __init__(self, activities: list[Activity]):
        super().__init__(_REDRAW_SECONDS)
        self.activities = activities
        self._shown = ""
        self._bar = tqdm(bar_format="{desc}", leave=False, file=sys.stderr)
        self._redirections = ExitStack()
        above: Any = _AboveTheBar(sys.stdout)
        self._redirections.enter_context(redirect_stdout(above))
        # Libraries with handlers of their own; all others, and this package, log through the root.
        libraries = [logging.getLogger(name) for name in ("transformers", "datasets", "huggingface_hub")]
        loggers = [logging.root, *(logger for logger in libraries if logger.handlers)]
        self._redirections.enter_context(logging_redirect_tqdm(loggers))
        self._redirections.enter_context(_warnings_above_the_bar())
        self._thread.start()

    def announce(self, activity: Activity) -> None:
        """Show an activity that begins."""
        self.tick()

    def tick(self) -> None:
        """Draw the line, if it has changed."""
        text = status(list(self.activities), shutil.get_terminal_size().columns - 3)  # and the ^C of Ctrl-C
        if text != self._shown:
            self._shown = text
            self._bar.set_description_str(text)

    def close(self) -> None:
        """Clear the line."""
        super().close()
        self._redirections.close()
        self._bar.close()


class _Lines(_Ticker):
    """A line when a long activity begins and after a silence, and no bars of libraries, whose fragments fill a file."""

    def __init__(self, activities: list[Activity], silence: float):
        super().__init__(min(silence, 1.0))
        self.activities, self.silence = activities, silence
        self.last = time.monotonic()
        self._redirections = ExitStack()
        self._redirections.enter_context(library_bars_off())
        self._thread.start()

    def announce(self, activity: Activity) -> None:
        """Write that an activity begins."""
        self._write(activity.name)

    def tick(self) -> None:
        """Write what goes on, after a silence."""
        if time.monotonic() - self.last >= self.silence:
            self._write(status(list(self.activities), 1000, graph=False))

    def _write(self, text: str) -> None:
        if text:
            print(f"... {text}", file=sys.stderr, flush=True)
        self.last = time.monotonic()

    def close(self) -> None:
        """End without a line."""
        super().close()
        self._redirections.close()


class _AboveTheBar:
    """A standard output whose whole lines are written above the status line."""

    def __init__(self, stream: TextIO):
        self.stream, self.begun = stream, ""

    def write(self, text: str) -> int:
        """Write the lines that are complete, and keep the beginning of the next one."""
        lines, newline, self.begun = (self.begun + text).rpartition("\n")
        if newline:
            self._write_above(lines + newline)
        return len(text)

    def flush(self) -> None:
        """Write the beginning of a line too, since somebody may be asked a question."""
        if self.begun:
            self._write_above(self.begun)
            self.begun = ""
        self.stream.flush()

    def _write_above(self, text: str) -> None:
        # tqdm makes room for what goes to the standard output, which is this object.
        with tqdm.external_write_mode(file=sys.stdout):
            self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def _warnings_above_the_bar() -> Iterator[None]:
    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        tqdm.write(warnings.formatwarning(message, category, filename, lineno, line), file=file or sys.stderr, end="")

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextmanager
def library_bars_off() -> Iterator[None]:
    """Run a block without the progress bars of transformers and datasets."""
    of_transformers, of_datasets = hf_logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    hf_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if of_transformers:
            hf_logging.enable_progress_bar()
        if of_datasets:
            datasets.enable_progress_bars()


def status(activities: list[Activity], width: int, *, graph: bool = True) -> str:
    """Return what goes on as one line of at most `width` characters; outer activities are left out first.

    Args:
        activities: From the outermost to the innermost.
        width: Most characters.
        graph: Whether to draw a bar of the outermost activity with a total.
    """
    if not activities:
        return ""
    texts = [activity.text() for activity in activities]
    counted = next((activity for activity in activities if activity.total), None)
    if graph and counted is not None:
        index = activities.index(counted)
        texts[index] = f"{counted.graph()} {texts[index]}"
    seconds = time.monotonic() - activities[-1].begin
    end = f", {duration(seconds)}" if seconds >= 1 else ""
    while len(texts) > 1 and len(" | ".join(texts) + end) > width:
        del texts[0]
    return (" | ".join(texts) + end)[: max(width, 0)]


def duration(seconds: float) -> str:
    """Return a time as 0:07, 12:31 or 2:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line_width() -> int | None:
    """Return the most characters of a line on the standard output; None where it is no terminal."""
    return shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else None


# The one of this process.
CONSOLE = Console()
