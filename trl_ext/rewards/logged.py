# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Logs of reward functions: scalars by `log_metric`, columns by `log_extra`."""

import math
from collections.abc import Iterable, Mapping

from trl_ext.processes import gather

from .base import RewardTypeError, RewardValueError

Weighted = tuple[float, float]
"""A value, and the number of samples that it stands for."""


class CallLog:
    """Logs of the calls of one reward function.

    Args:
        samples: Samples in the call, the weight of a scalar that it logs.
    """

    def __init__(self, samples: int = 1) -> None:
        self.samples = samples
        self.extra: dict[str, list] = {}
        self.metrics: dict[str, list[Weighted]] = {}

    def log_extra(self, column: str, values: list) -> None:
        """Add `values` to a column of the sample table."""
        self.extra.setdefault(column, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        """Add a scalar to the logs."""
        if not isinstance(name, str) or not name:
            raise RewardTypeError(f"`log_metric` got the name {name!r:.60}: give a text, such as 'my_reward/matches'.")
        self.metrics.setdefault(name, []).append((float(value), float(self.samples)))

    def check(self, name: str, count: int) -> None:
        """Refuse columns without one value for each of the `count` samples of a call of function `name`."""
        for column, values in self.extra.items():
            if len(values) != count > 1:
                raise RewardValueError(
                    f"Reward function '{name}' logged {len(values)} values for the column {column!r:.60} and {count} "
                    f"completions: log one per completion."
                )

    def add(self, other: "CallLog", *, at: list[int], of: int) -> None:
        """Add the logs of a call on the samples `at` of `of` samples."""
        for column, values in other.extra.items():
            whole = self.extra.setdefault(column, [None] * of)
            # alone, a sample may have logged several values
            for index, value in zip(at, values if len(values) == len(at) else [values], strict=True):
                whole[index] = value
        for name, weighted in other.metrics.items():
            self.metrics.setdefault(name, []).extend(weighted)


def combined(name: str, values: Iterable[Weighted]) -> Weighted:
    """Return the weighted mean of a metric's values, or their extreme where its name ends in `/max` or `/min`.

    Returns:
        The value and the sum of the weights.
    """
    values = list(values)
    total, kind = math.fsum(weight for _, weight in values), name.rsplit("/", 1)[-1]
    if kind in ("max", "min"):
        return (max if kind == "max" else min)(value for value, _ in values), total
    return math.fsum(value * weight for value, weight in values) / total, total


def over_processes(metrics: Mapping[str, Weighted]) -> dict[str, float]:
    """Return the metrics over all processes, the same on each; a collective if torch.distributed runs.

    A metric that only some processes logged is the mean of their samples.
    """
    parts = gather(dict(metrics))
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: combined(name, [part[name] for part in parts if name in part])[0] for name in names}
