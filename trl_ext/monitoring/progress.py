# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The phases of a run: how long each takes, shown on the console while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from .console import CONSOLE, Activity, Console, library_bars_off

# What the console says in a phase. Phases that are not in this table are timed and not shown: "train" and "prepare"
# hold phases that say more.
_SHOWN = {
    "generate": "sampling",
    "score": "scoring",
    "evaluate": "forward passes",
    "learn": "learning",
    "critic": "training the critic",
    "sample_for_critic": "sampling for the critic's pretraining",
    "pretrain_critic": "pretraining the critic",
    "eval": "evaluating",
    "save": "saving a checkpoint",
    "write": "writing the model",
    "evaluate_before": "evaluating before training",
    "evaluate_after": "evaluating after training",
    "evaluate_ema": "evaluating the policy average",
    "frontier_before": "sampling for the least KL, before training",
    "frontier_after": "sampling for the least KL, after training",
    "frontier_ema": "sampling for the KL of the policy average",
}
# Of these a log file is told when they begin.
_LONG = (
    "sample_for_critic",
    "pretrain_critic",
    "evaluate_before",
    "evaluate_after",
    "evaluate_ema",
    "frontier_before",
    "frontier_after",
    "frontier_ema",
)


class PhaseProgress:
    """Times the phases of a rollout and shows them on the console.

    Example:
        >>> progress = PhaseProgress(enabled=False)
        >>> with progress.phase("generate", total=64) as advance:
        ...     advance(8, tokens=120)
        >>> list(progress.take_seconds())
        ['generate']

    Attributes:
        seconds: Wall-clock seconds per phase since the last `take_seconds`. Time in a phase that was opened inside
            another counts for both.
    """

    def __init__(self, enabled: bool = True, *, bars: bool = True, console: Console = CONSOLE) -> None:
        """Create a progress display.

        Args:
            enabled: Whether to show anything, usually `args.process_index == 0`. Time is measured in any case.
            bars: Whether a terminal gets a status line, usually `not args.disable_tqdm`; otherwise it gets lines now
                and then, as a log file does.
            console: Where to show it.
        """
        self.enabled, self.bars, self.console = enabled, bars, console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(
        self, name: str, total: int | None = None, unit: str = "completions", done: int = 0
    ) -> Iterator[Callable[..., Any]]:
        """Measure the phase `name`, and show it.

        Args:
            name: For example `generate`, `score`, `evaluate` or `learn`. A name may be used repeatedly; its seconds
                add up.
            total: Number of units in the phase, if it is known.
            unit: What is counted, in the plural.
            done: Units that are done already.

        Yields:
            A function `advance(n=1, tokens=0)`: `n` more units, and `tokens` more tokens, are done.
        """
        shown = nullcontext(Activity(name))
        if self.enabled and name in _SHOWN:
            is_long = name in _LONG
            shown = self.console.activity(_SHOWN[name], total, unit, done=done, bars=self.bars, long=is_long)  # type: ignore[assignment]
        start = time.perf_counter()
        try:
            with shown as activity, library_bars_off() if name == "write" else nullcontext():
                yield activity.advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def take_seconds(self) -> dict[str, float]:
        """Return `seconds` and start a new measurement, once per rollout."""
        taken, self.seconds = self.seconds, {}
        return taken
