# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Progress that also moves while completions are sampled and scored, and the seconds each phase took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm


class PhaseProgress:
    """Times the phases of a rollout and shows a transient bar below the Trainer's own.

    Example:
        >>> progress = PhaseProgress(enabled=False)
        >>> with progress.phase("generate", total=64) as advance:
        ...     advance(8)
        >>> list(progress.take_seconds())
        ['generate']

    Attributes:
        seconds: Wall-clock seconds per phase since the last `take_seconds`. Time in a phase that was opened inside
            another counts for both.
    """

    def __init__(self, enabled: bool = True) -> None:
        """Create a progress display.

        Args:
            enabled: Whether to show bars, usually
                `trainer.is_world_process_zero() and not args.disable_tqdm`. Time is measured in any case.
        """
        self.enabled = enabled
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "completion") -> Iterator[Callable[..., Any]]:
        """Measure the phase `name`, and show a bar if `total` is given.

        The bar vanishes at the end, also when the phase raises. It is never drawn into a file or a pipe.

        Args:
            name: For example `generate`, `score`, `evaluate` or `learn`. A name may be used repeatedly; its seconds
                add up.
            total: Number of units in the phase. Without it the phase is only timed.
            unit: What is counted, for the display.

        Yields:
            A function `advance(n=1)`: `n` more units are done.
        """
        # disable=None is tqdm's own test for a terminal. tqdm chooses the position itself, the first line that
        # is free: below the Trainer's training bar, or below its evaluation bar too when that is open.
        bar = tqdm(
            total=total,
            desc=name,
            unit=f" {unit}",
            leave=False,
            dynamic_ncols=True,
            disable=None if self.enabled and total is not None else True,
        )
        start = time.perf_counter()
        try:
            yield bar.update
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            bar.close()

    def take_seconds(self) -> dict[str, float]:
        """Return `seconds` and start a new measurement, once per rollout."""
        taken, self.seconds = self.seconds, {}
        return taken
