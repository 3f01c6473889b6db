# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Phases are timed in any case, and shown on a console of their own."""

import time

import pytest

from trl_ext.monitoring.console import Console
from trl_ext.monitoring.progress import PhaseProgress


class Recorder(Console):
    """A console that remembers what was under way when it was asked."""

    def texts(self) -> list[str]:
        return [activity.text() for activity in self._activities]


@pytest.fixture
def console() -> Recorder:
    return Recorder()


def test_a_phase_says_what_it_does_and_vanishes(console: Recorder):
    progress = PhaseProgress(console=console)
    with progress.phase("generate", total=64) as advance:
        assert console.texts() == ["sampling 0/64 completions"]
        advance(8)
        assert console.texts() == ["sampling 8/64 completions"]
        advance(tokens=1830, n=4)
        assert console.texts()[0].startswith("sampling 12/64 completions, 1,830 tokens, ")
    assert console.texts() == []


def test_a_phase_inside_another_comes_after_it(console: Recorder):
    progress = PhaseProgress(console=console)
    with progress.phase("eval"), progress.phase("score", 16, "rewards"):
        assert console.texts() == ["evaluating", "scoring 0/16 rewards"]


def test_phases_without_words_and_other_processes_are_only_timed(console: Recorder):
    one, other = PhaseProgress(console=console), PhaseProgress(False, console=console)
    with one.phase("train"), other.phase("generate", total=2) as advance:
        advance(2)
        assert console.texts() == []
    assert list(one.seconds) == ["train"] and list(other.seconds) == ["generate"]


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


def test_a_phase_that_fails_is_timed_and_no_longer_shown(console: Recorder):
    progress = PhaseProgress(console=console)
    with pytest.raises(RuntimeError, match="reward"), progress.phase("score", total=2):
        raise RuntimeError("reward function failed")
    assert list(progress.seconds) == ["score"] and console.texts() == []
