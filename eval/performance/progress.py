# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Progress displays of our trainer that measure time and memory, where one phase ends and the next begins."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trl_ext.monitoring import PhaseProgress

from .peaks import Memory
from .stopwatch import Stopwatch


class TimedProgress(PhaseProgress):
    """The progress display of our trainer, timed."""

    def __init__(self, stopwatch: Stopwatch):
        super().__init__(enabled=False)
        self.stopwatch = stopwatch

    @contextmanager
    def phase(self, name: str, *args: Any, **kwargs: Any) -> Iterator[Callable[..., Any]]:
        """Measure the phase `name`, as `PhaseProgress.phase` does."""
        with self.stopwatch.phase(name), super().phase(name, *args, **kwargs) as advance:
            yield advance


class PhasePeaks(PhaseProgress):
    """A trainer's progress display that measures memory and time instead.

    The time between two phases counts for the first: the optimizer's step comes after the last phase "learn".

    Args:
        memory: Where peaks are read.

    Attributes:
        peaks: Bytes by phase, as `memory.read` gives them.
        total_seconds: Seconds by phase, over the whole run.
    """

    def __init__(self, memory: Memory):
        super().__init__(enabled=False)
        self.memory = memory
        self.peaks: dict[str, dict[str, int]] = {}
        self.total_seconds: dict[str, float] = {}
        self._current: str | None = None

    def start(self, name: str | None) -> None:
        """Record the peaks of the current phase, and begin the phase `name`; None begins none."""
        if self._current is not None:
            peaks = self.peaks.setdefault(self._current, {})
            for kind, size in self.memory.read().items():
                peaks[kind] = max(peaks.get(kind, 0), size)
        self.memory.reset()
        self._current = name

    @contextmanager
    def phase(self, name: str, *args: Any, **kwargs: Any) -> Iterator[Callable[..., Any]]:
        """Measure the phase `name`, as `PhaseProgress.phase` does, with its memory."""
        self.memory.synchronize()
        self.start(name)
        begin = time.perf_counter()
        with super().phase(name, *args, **kwargs) as advance:
            yield advance
            self.memory.synchronize()
        self.total_seconds[name] = self.total_seconds.get(name, 0.0) + time.perf_counter() - begin
