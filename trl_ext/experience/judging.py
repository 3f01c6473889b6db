# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Evaluation that is not the reward: judges and metrics of completions that the policy never learns from."""

import inspect
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch

from trl_ext.messages.printable import brief
from trl_ext.messages.suggestion import suggestion
from trl_ext.monitoring.glossary import find
from trl_ext.processes import gather, together
from trl_ext.rewards import RewardRunner
from trl_ext.rewards.base import Batch, accepted_arguments, is_async

__all__ = ["Judging", "check_best_metric", "check_compute_metrics", "own_random_numbers"]

SIGNATURE = "compute_metrics(prompts, completions, completion_ids, **columns)"
_GIVEN = ("prompts", "completions", "completion_ids")


class _Part(NamedTuple):
    """One batch of an evaluation: its texts where `compute_metrics` needs them, and a row of scores a sample."""

    batch: Batch | None
    scores: list[list[float]]


class Judging:
    """Judges the completions of an evaluation. Nothing of it reaches training: no gradient, state or random number.

    Args:
        judges: Runs the functions of `eval_reward_funcs`; None without any.
        compute_metrics: `compute_metrics(prompts, completions, completion_ids, **columns)` returns numbers by name. The
            main process calls it once for each evaluation, with all N samples in the order of the dataset.
    """

    def __init__(self, judges: RewardRunner | None = None, compute_metrics: Callable[..., Any] | None = None):
        self.judges, self.compute_metrics = judges, compute_metrics
        self.begin()

    def begin(self) -> None:
        """Begin an evaluation; parts of one that was interrupted are forgotten."""
        self._parts: list[_Part] = []
        self._seconds = 0.0

    def add(self, batch: Batch, state: Any) -> None:
        """Judge a batch of this process; every process calls it.

        Args:
            batch: N samples, none of them on two processes.
            state: The trainer's state, for functions that read it.

        Raises:
            RuntimeError: as `RewardRunner`, when a judge fails on too many samples.
        """
        rows: list[list[float]] = [[] for _ in range(len(batch))]
        if self.judges is not None:
            start = time.perf_counter()
            texts = (batch.prompts, batch.completions, batch.completion_ids or [], batch.columns)
            with _same_random_numbers():
                scores = self.judges(*texts, trainer_state=state, update_state=False, together=together)
            rows = scores.per_function.tolist()
            self._seconds += time.perf_counter() - start
        self._parts.append(_Part(batch if self.compute_metrics is not None else None, rows))

    def take(self, prefix: str, *, is_main: bool) -> dict[str, float]:
        """Return the metrics of the evaluation, the same on every process, and forget its samples; a collective.

        Args:
            prefix: Of the names, such as "eval".
            is_main: Whether this is the process that calls `compute_metrics`.

        Returns:
            `judge/<name>/mean` and `judge/<name>/std` over the samples that a judge scored, `time/judge` (seconds), and
            what `compute_metrics` returned, all behind the prefix.

        Raises:
            TypeError: when `compute_metrics` returns something else than numbers by name.
            ValueError: when it names one of the trainer's own metrics.
        """
        own, seconds = self._parts, self._seconds
        self.begin()
        metrics: dict[str, float] = {}
        if self.judges is None and self.compute_metrics is None:
            return metrics
        parts = _in_order(gather(own))
        if self.judges is not None:
            rows = [row for part in parts for row in part.scores]
            for name, scores in zip(self.judges.names, np.array(rows, dtype=float).T, strict=False):
                known = scores[~np.isnan(scores)]
                if len(known):
                    metrics |= {f"judge/{name}/mean": float(known.mean()), f"judge/{name}/std": float(known.std())}
            metrics["time/judge"] = seconds
        if self.compute_metrics is not None:
            computed: dict[str, float] = {}
            with together("`compute_metrics`"):
                if is_main:
                    computed = self._call([part.batch for part in parts if part.batch is not None], prefix)
            metrics |= gather(computed)[0]
        return {f"{prefix}_{name}": value for name, value in metrics.items()}

    def _call(self, batches: list[Batch], prefix: str) -> dict[str, float]:
        """Call `compute_metrics` and return its numbers by their names without the prefix."""
        assert self.compute_metrics is not None
        given = [batch.fresh().arguments() for batch in batches]
        names = given[0] if given else dict.fromkeys(_GIVEN)
        columns = {name: [value for part in given for value in part[name]] for name in names}
        with _same_random_numbers():
            result = self.compute_metrics(**accepted_arguments(self.compute_metrics, columns))
        if not isinstance(result, Mapping):
            raise TypeError(f"`compute_metrics` returned {brief(result)}; return numbers by name, as a dictionary.")
        found = {str(name).removeprefix(f"{prefix}_"): value for name, value in result.items()}
        for name, value in found.items():
            if find(name) is not None:
                raise ValueError(f"`compute_metrics` returned '{name}', a metric of the trainer; choose another name.")
            if not isinstance(value, Real) and getattr(value, "shape", None) != ():  # of a tensor with one number
                raise TypeError(f"`compute_metrics` returned {brief(value)} as '{name}'; return a number.")
        return {name: float(value) for name, value in found.items()}


def check_compute_metrics(function: Any, columns: Sequence[str]) -> None:
    """Refuse what is no `compute_metrics`, before anything is loaded.

    Args:
        function: The argument.
        columns: Columns of the datasets to evaluate on.

    Raises:
        TypeError: naming what to change; also for a function of transformers' `EvalPrediction`.
    """
    if not callable(function) or isinstance(function, type) or is_async(function):
        raise TypeError(f"`compute_metrics` must be a plain function `{SIGNATURE}`, got {brief(function)}.")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    unknown = [
        p.name
        for p in parameters
        if p.default is p.empty
        and (p.kind is p.POSITIONAL_ONLY or (p.kind in by_name and p.name not in (*_GIVEN, *columns)))
    ]
    if unknown:
        raise TypeError(
            f"`compute_metrics` asks for '{unknown[0]}', which is no column of `eval_dataset`; an evaluation has "
            f"completions and no logits or labels: write it as `{SIGNATURE}`."
        )


def check_best_metric(metric: str, judges: Sequence[str], sets: Sequence[str]) -> None:
    """Refuse a `metric_for_best_model` of a judge that there is not.

    Args:
        metric: Its value.
        judges: Names of `eval_reward_funcs`.
        sets: Names of several evaluation datasets; none for a single one.

    Raises:
        ValueError: naming the metrics of the judges.
    """
    prefixes = [f"eval_{name}_" for name in sets] or ["eval_"]
    named = metric if metric.startswith("eval_") else f"eval_{metric}"
    if not any(named.startswith(f"{prefix}judge/") for prefix in prefixes):
        return
    known = [f"{prefix}judge/{name}/{what}" for prefix in prefixes for name in judges for what in ("mean", "std")]
    if named in known:
        return
    remedy = suggestion(named, known) or f"known are {', '.join(known)}." if known else "give `eval_reward_funcs`."
    raise ValueError(f"`metric_for_best_model` is '{metric}', which is not measured: {remedy}")


def _in_order(parts: list[list[_Part]]) -> list[_Part]:
    """Return the batches of all processes in the order of the dataset: process p of P has batches p, p + P, ..."""
    return [part for turn in zip_longest(*parts) for part in turn if part is not None]


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Give a block the random numbers of a seed, and training those that it would have without the block."""
    devices = [device] if device.type == "cuda" else []
    with _same_random_numbers(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Give training the random numbers that it would have without the block; torch's are the evaluation's."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
