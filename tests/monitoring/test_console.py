# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The status line of a terminal and the lines of a log file, on streams that the tests read."""

import io
import logging
import re
import sys
import threading
import time
import warnings

import datasets
import pytest
from transformers.utils import logging as hf_logging

from trl_ext.monitoring.console import Activity, Console, duration, status


class Terminal(io.StringIO):
    """A stream that is a terminal; `screen` is what a person sees of it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """The lines of the screen: a carriage return goes back to the first column, and later text covers earlier."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in the place of the standard streams. As a fixture it would come before pytest's own streams."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setenv("COLUMNS", "80")
    return made


def in_files(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


def wait_for(text: str, stream: io.StringIO) -> None:
    deadline = time.monotonic() + 5
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.02)


# ---- terminal ----


def test_the_status_line_moves_and_vanishes(monkeypatch: pytest.MonkeyPatch):
    terminal = on_terminal(monkeypatch)
    console = Console()
    with console.activity("sampling", 64, "completions") as activity:
        wait_for("sampling 0/64 completions", terminal)
        activity.advance(12, tokens=1830)
        wait_for("sampling 12/64 completions, 1,830 tokens, ", terminal)
    assert terminal.screen() == [""]
    assert sys.stdout is terminal and threading.active_count() < 20


def test_whatever_is_written_stands_above_the_line(monkeypatch: pytest.MonkeyPatch):
    """Prints, warnings, logged messages and lines of the run, while the line is drawn again and again."""
    terminal = on_terminal(monkeypatch)
    console = Console()
    logger = logging.getLogger("trl_ext.some_module")
    with console.activity("sampling", 64, "completions") as activity:
        for number in range(3):
            activity.advance(1)
            wait_for(f"sampling {number + 1}/64", terminal)
            print("a print", number)
            warnings.warn(f"a warning {number}", stacklevel=1)
            logger.warning("a message")
            console.write("a line")
    screen = terminal.screen()
    assert [line for line in screen if line.startswith("a ")] == [
        "a print 0", "a message", "a line", "a print 1", "a message", "a line", "a print 2", "a message", "a line",
    ]  # fmt: skip
    assert not any("sampling" in line for line in screen), "the line was left behind"
    assert all(any(f"UserWarning: a warning {number}" in line for line in screen) for number in range(3))
    assert warnings.showwarning.__module__ != "trl_ext.monitoring.console"


def test_a_question_is_asked_at_once(monkeypatch: pytest.MonkeyPatch):
    terminal = on_terminal(monkeypatch)
    with Console().activity("sampling"):
        print("Name? ", end="")
        assert "Name?" not in terminal.getvalue()
        print("", end="", flush=True)
        assert "Name?" in terminal.getvalue()


def test_the_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch):
    on_terminal(monkeypatch)
    outer, inner = Activity("step", 64, done=12), Activity("sampling", 64, "completions")
    inner.tokens = 1830
    heading = Activity("evaluating the policy that the training begins with")
    wide, narrow = status([outer, heading, inner], 200), status([outer, heading, inner], 79)
    assert re.fullmatch(r"\|█.{9}\| step 12/64 \| evaluating .* \| sampling 0/64 completions, 1,830 .* tok/s", wide)
    assert narrow.startswith("sampling 0/64 completions") and len(narrow) <= 79
    assert status([outer, inner], 10) == "sampling 0"


def test_an_activity_that_fails_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch):
    terminal = on_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), Console().activity("sampling"):
        raise KeyboardInterrupt
    print("after")
    assert terminal.screen()[-2:] == ["after", ""] and sys.stdout is terminal


# ---- log file ----


def test_a_log_file_is_told_when_something_long_begins_and_after_a_silence(monkeypatch: pytest.MonkeyPatch):
    out, err = in_files(monkeypatch)
    console = Console(silence=0.2)
    with console.activity("training", long=True), console.activity("sampling", 64, "completions") as activity:
        assert err.getvalue() == "... training\n"
        activity.advance(12, tokens=1830)
        wait_for("... training | sampling 12/64 completions, 1,830 tokens, ", err)
        console.now("scoring", long=True)
    assert err.getvalue().splitlines()[-1] == "... scoring"
    assert out.getvalue() == "" and "\r" not in err.getvalue()


def test_lines_of_the_run_break_the_silence(monkeypatch: pytest.MonkeyPatch):
    out, err = in_files(monkeypatch)
    console = Console(silence=0.6)
    with console.activity("training"):
        for _ in range(8):
            time.sleep(0.15)
            console.write("a line")
    assert err.getvalue() == "" and out.getvalue() == 8 * "a line\n"


def test_short_activities_are_not_told(monkeypatch: pytest.MonkeyPatch):
    out, err = in_files(monkeypatch)
    with Console().activity("sampling", 64, "completions") as activity:
        activity.advance(64)
    assert err.getvalue() == ""


def test_without_bars_a_terminal_is_treated_as_a_file(monkeypatch: pytest.MonkeyPatch):
    terminal = on_terminal(monkeypatch)
    with Console().activity("training", bars=False, long=True), Console().activity("sampling", 2, bars=False):
        pass
    assert terminal.getvalue() == "... training\n"


def test_libraries_draw_no_bars_into_a_file(monkeypatch: pytest.MonkeyPatch):
    out, err = in_files(monkeypatch)
    before = hf_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    with Console().activity("training"):
        assert not hf_logging.is_progress_bar_enabled() and datasets.are_progress_bars_disabled()
    assert before == (hf_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled())


def test_durations():
    assert [duration(s) for s in (0, 7.4, 751, 7500)] == ["0:00", "0:07", "12:31", "2:05:00"]
