# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Seconds of every update and of its phases. `trl_ext` is not imported: any interpreter can run this."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel, TrainerCallback

PHASES = ("generate", "score", "evaluate", "learn")


class Stopwatch(TrainerCallback):
    """Seconds of every update and of its phases.

    Time outside the other phases counts as learning; in TRL's trainer that includes two garbage collections an update.

    Args:
        device: "cuda" or "cpu".
        clock: "wall", or "cpu" for the seconds that this process has had of the processor.
        steps: Steps of the Trainer's loop in an update.

    Attributes:
        updates: Seconds by phase, one mapping per update.
        tokens: Tokens of completions, one number per update, where the run counts them.
    """

    def __init__(self, device: str, steps: int, clock: str = "wall"):
        self.device, self.steps = device, steps
        self._read = time.process_time if clock == "cpu" else time.perf_counter
        self.updates: list[dict[str, float]] = []
        self.tokens: list[int] = []
        self._phases: dict[str, float] = {}
        self._start, self._tokens = 0.0, 0

    def now(self) -> float:
        """Return the time at which the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self._read()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block towards the phase `name`."""
        start = self.now()
        try:
            yield
        finally:
            self.add(name, self.now() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds towards the phase `name`."""
        self._phases[name] = self._phases.get(name, 0.0) + seconds

    def count(self, tokens: int) -> None:
        """Count tokens of completions towards this update."""
        self._tokens += tokens

    def start(self) -> None:
        """Start the first update."""
        self._start = self.now()

    def end_update(self) -> None:
        """End an update, and start the next."""
        now = self.now()
        phases = {name: self._phases.get(name, 0.0) for name in PHASES if name != "learn"}
        self.updates.append(phases | {"learn": now - self._start - sum(phases.values())})
        self.tokens.append(self._tokens)
        self._phases, self._start, self._tokens = {}, now, 0

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the first update."""
        self.start()

    def on_step_end(self, args, state, control, **kwargs):
        """End an update with the last of its steps."""
        if state.global_step % self.steps == 0:
            self.end_update()


@contextmanager
def timed_functions(module: Any, reward_model: PreTrainedModel, stopwatch: Stopwatch) -> Iterator[None]:
    """Measure the phases of TRL's trainer by the functions that it calls."""

    def timed(function: Callable[..., Any], phase_of: Callable[..., str | None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            name = phase_of(*args)
            if name is None:
                return function(*args, **kwargs)
            with stopwatch.phase(name):
                return function(*args, **kwargs)

        return call

    def unless_learning(*_: Any) -> str | None:
        return None if torch.is_grad_enabled() else "evaluate"

    phases: dict[str, Callable[..., str | None]] = {
        "batch_generation": lambda *_: "generate",
        "get_reward": lambda scorer, *_: "score" if scorer is reward_model else "evaluate",
        "forward": unless_learning,
        "selective_log_softmax": unless_learning,
    }
    with ExitStack() as stack:
        for name, phase_of in phases.items():
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name), phase_of)))
        yield
