# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Asynchrony by one rollout: the next rollout is sampled while the policy learns from this one."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from trl_ext.files import write_text

from .engines import AsyncEngine, Completions
from .prompts import RolloutRows, RolloutSampler

_LOOK = 0.2  # seconds between two looks at a rollout that is waited for
_PATIENCE = 10.0  # seconds for a thread to end whose rollout nobody wants any more


class RolloutAhead:
    """The completions of the next rollout, which a thread samples while the policy learns.

    They come from the policy as it was before it learned from the rollout before: they are stale by exactly one
    rollout. Importance weights pi_old / pi_engine make up for that, with pi_old from the policy that is about to
    learn: the decoupled objective of PPO (Hilton et al. 2021; AReaL, arXiv 2505.24298, equation 5).

    Args:
        is_on: Whether rollouts are sampled ahead; otherwise there is never one.

    Attributes:
        is_on: As given.
        staleness: Optimizer steps between the weights that sampled the rollout in use and those that learn from it.
    """

    def __init__(self, is_on: bool):
        self.is_on, self.staleness = is_on, 0
        self._flight: _Flight | None = None
        self._source: tuple[RolloutRows, RolloutSampler, int] | None = None

    def follow(self, rows: RolloutRows, sampler: RolloutSampler, steps_per_rollout: int) -> None:
        """Take the prompts of the next rollouts from `rows`, in the order of `sampler`."""
        self._source = (rows, sampler, steps_per_rollout)

    def next_rows(self, state: Any) -> list[Any] | None:
        """Return the rows of the rollout after this one; None without asynchrony, and where the run ends before it.

        Args:
            state: The trainer's state, at the first optimizer step of a rollout.
        """
        if not self.is_on:
            return None
        assert self._source is not None
        rows, sampler, steps_per_rollout = self._source
        number = state.global_step // steps_per_rollout + 1
        return rows.__getitems__(sampler.rollout(number)) if number * steps_per_rollout < state.max_steps else None

    def begin(self, engine: AsyncEngine, model: Any, prompt_ids: list[list[int]], step: int) -> None:
        """Have a thread sample from the weights that the model has now.

        Args:
            engine: Has not been told since its last call that the weights changed, or has them read again.
            model: Causal LM in eval mode.
            prompt_ids: Unpadded token ids of each prompt.
            step: Optimizer steps taken so far.
        """
        assert self._flight is None, "the rollout before has not been taken"
        self._flight = _Flight(prompt_ids, step)
        try:
            self._flight.start(engine.prepare(model, prompt_ids))
        except BaseException:
            self._flight = None
            raise

    def take(self, prompt_ids: list[list[int]], step: int, on_progress: Callable[..., Any]) -> Completions | None:
        """Return the completions that were sampled ahead, once they are all there; None where there are none.

        Completions of other prompts do not count: a run may be resumed with another order of its prompts.

        Args:
            prompt_ids: Unpadded token ids of each prompt of the rollout that is wanted.
            step: Optimizer steps taken so far.
            on_progress: As in `GenerationEngine`.

        Raises:
            Exception: the engine's.
        """
        flight, self._flight, self.staleness = self._flight, None, 0
        if flight is None:
            return None
        if flight.prompt_ids != prompt_ids:
            flight.cancel()
            return None
        self.staleness = step - flight.step
        return flight.result(on_progress)

    def finish(self) -> None:
        """Wait for the rollout that is being sampled, and keep it: the engine is then free for another call."""
        if self._flight is not None:
            wait([self._flight.future])

    def close(self, close_engine: Callable[[], Any]) -> None:
        """Give up the rollout that is being sampled, and close the engine, which ends its requests."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.cancel()
        close_engine()
        if flight is not None:
            wait([flight.future], timeout=_PATIENCE)

    def save(self, path: Path) -> None:
        """Write the rollout that was sampled ahead, once it is there; nothing where there is none, or it failed."""
        self.finish()
        if self._flight is not None and self._flight.future.exception() is None:
            write_text(path, json.dumps(self._flight.as_json()))

    def load(self, path: Path) -> None:
        """Read what `save` wrote, to the last bit; without the file there is no rollout ahead."""
        self._flight = None
        if self.is_on and path.is_file():
            self._flight = _Flight.from_json(json.loads(path.read_text()))


class _Flight:
    """A rollout that a thread samples.

    Attributes:
        prompt_ids: Unpadded token ids of each prompt.
        step: Optimizer steps that its weights have taken.
        future: Its completions.
    """

    def __init__(self, prompt_ids: list[list[int]], step: int):
        self.prompt_ids, self.step = prompt_ids, step
        self.future: Future[Completions] = Future()
        self._done = [0, 0]  # completions and tokens
        self._is_cancelled = False

    def start(self, sample: Callable[[Callable[..., Any]], Completions]) -> None:
        """Sample in a thread, which does not keep the process alive."""

        def run() -> None:
            try:
                self.future.set_result(sample(self._count))
            except BaseException as error:
                self.future.set_exception(error)

        threading.Thread(target=run, daemon=True, name="trl_ext-rollout-ahead").start()

    def _count(self, completions: int, tokens: int = 0) -> None:
        if self._is_cancelled:
            raise InterruptedError("the rollout is not wanted any more")
        self._done = [self._done[0] + completions, self._done[1] + tokens]

    def cancel(self) -> None:
        """Have the thread end at the next completion."""
        self._is_cancelled = True

    def result(self, on_progress: Callable[..., Any]) -> Completions:
        """Return the completions, once they are all there, or raise the engine's exception."""
        shown = [0, 0]
        while True:
            finished, done = self.future.done(), self._done
            on_progress(done[0] - shown[0], done[1] - shown[1])
            shown = done
            if finished:
                return self.future.result()
            wait([self.future], timeout=_LOOK)

    def as_json(self) -> dict[str, Any]:
        """Return prompts, step and completions as values that JSON has a form for."""
        return {"prompt_ids": self.prompt_ids, "step": self.step} | self.future.result()._asdict()

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "_Flight":
        """Return a rollout that has been sampled; see `as_json`."""
        flight = cls(saved.pop("prompt_ids"), saved.pop("step"))
        flight.future.set_result(Completions(**saved))
        return flight
