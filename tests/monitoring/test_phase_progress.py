# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import io
import time
from typing import Any

import pytest
from tqdm import tqdm

from trl_ext.monitoring.progress import PhaseProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _watch(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **options: Any) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    progress = PhaseProgress(**options)
    with progress.phase("generate", total=64) as advance:
        for _ in range(8):
            time.sleep(0.02)
            advance(8)
    return stream.getvalue()


def test_bar_moves_in_a_terminal_and_vanishes(monkeypatch: pytest.MonkeyPatch):
    output = _watch(monkeypatch, Terminal())
    assert "generate" in output and "0/64" in output
    assert any(f"{count}/64" in output for count in range(8, 64, 8))
    assert output.rsplit("\r", 2)[-2].strip() == ""
    assert not output.endswith("\n")


def test_bar_goes_below_the_trainers_bar(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with tqdm(total=10, file=terminal) as trainer_bar:
        with PhaseProgress().phase("score", total=4) as advance:
            advance(4)
        phase = terminal.getvalue().split("score")[0]
        trainer_bar.update(1)
    assert "0/10" in phase
    # The cursor went one line down to draw the phase, and came back up.
    assert phase.endswith("\n\r")
    assert "\x1b[A" in terminal.getvalue()


def test_nothing_is_drawn_into_a_file(monkeypatch: pytest.MonkeyPatch):
    assert _watch(monkeypatch, io.StringIO()) == ""


def test_nothing_is_drawn_when_disabled(monkeypatch: pytest.MonkeyPatch):
    assert _watch(monkeypatch, Terminal(), enabled=False) == ""


def test_a_phase_without_a_total_is_only_timed(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    progress = PhaseProgress()
    with progress.phase("learn"):
        pass
    assert terminal.getvalue() == ""
    assert list(progress.seconds) == ["learn"]


def test_seconds_add_up_per_phase_until_taken(monkeypatch: pytest.MonkeyPatch):
    clock = iter([10.0, 11.5, 20.0, 20.25, 30.0, 32.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    progress = PhaseProgress(enabled=False)
    for name in ("generate", "score", "generate"):
        with progress.phase(name):
            pass
    assert progress.seconds == {"generate": 3.5, "score": 0.25}
    assert progress.take_seconds() == {"generate": 3.5, "score": 0.25}
    assert progress.seconds == {}


def test_a_phase_that_fails_is_timed_and_its_bar_closed(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    progress = PhaseProgress()
    with pytest.raises(RuntimeError, match="reward"), progress.phase("score", total=2):
        raise RuntimeError("reward function failed")
    assert list(progress.seconds) == ["score"]
    assert terminal.getvalue().rsplit("\r", 2)[-2].strip() == ""
