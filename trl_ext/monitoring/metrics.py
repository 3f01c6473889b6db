# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Scalars of a training run, collected between two calls of `Trainer.log`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, SupportsFloat


class MetricBuffer:
    """Weighted means and extremes of the scalars added since the last `flush`.

    A name whose last part (after the last `/`) is `max` or `min` keeps its largest or smallest value; every other
    name keeps its weighted mean. The mean is updated in place (West 1979, "Updating mean and variance estimates"),
    so a constant stays exactly that constant: a `kl_coef` of 0.1 is logged as 0.1 however often it was added.

    Example:
        >>> buffer = MetricBuffer()
        >>> buffer.add("entropy", 2.0, weight=30)
        >>> buffer.add("entropy", 4.0, weight=10)
        >>> buffer.update({"ratio/max": 1.3})
        >>> buffer.flush()
        {'entropy': 2.5, 'ratio/max': 1.3}
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def add(self, name: str, value: SupportsFloat, weight: SupportsFloat = 1.0) -> None:
        """Add one value.

        Args:
            name: Name under which the metric is logged.
            value: A number or a tensor of one element. NaN means "not defined this time" and is left out.
            weight: What the value counts for, for example the number of tokens it was averaged over. A weight of 0
                leaves the value out. It does not scale a `max` or `min`.

        Raises:
            ValueError: If the weight is negative, infinite or NaN.
        """
        value, weight = float(value), float(weight)
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"The weight of metric {name!r} is {weight}; pass a finite weight of 0 or more.")
        if math.isnan(value) or weight == 0:
            return
        if name not in self._values:
            self._values[name] = (value, weight)
            return
        old, total = self._values[name]
        total += weight
        self._values[name] = (_combine(name, old, value, weight / total), total)

    def update(self, metrics: Mapping[str, SupportsFloat], weight: SupportsFloat = 1.0) -> None:
        """Add every entry of `metrics` with the same weight."""
        for name, value in metrics.items():
            self.add(name, value, weight)

    def flush(self) -> dict[str, float]:
        """Return the metrics in the order in which they were first added, and start anew.

        A metric that was NaN every time is absent.
        """
        metrics = {name: value for name, (value, _) in self._values.items()}
        self._values = {}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the content as JSON-able numbers. Python writes floats to JSON so that they are read back exactly."""
        # A list, because the order is part of the state and JSON objects are often written with sorted keys.
        return {"metrics": [[name, value, total] for name, (value, total) in self._values.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the content by that of `state`, so that a resumed run logs what an uninterrupted one would.

        Args:
            state: What `state_dict` returned, also after a round trip through JSON.
        """
        self._values = {name: (float(value), float(total)) for name, value, total in state["metrics"]}


def finite(value: Any) -> float | None:
    """Return `value` as a float that can be drawn, or None if it is missing, not a number, NaN or infinite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    # Axis limits beyond this overflow in plotting libraries.
    return number if abs(number) < 1e30 else None


def has_equal_rewards(metrics: Mapping[str, Any]) -> bool:
    """Return whether all completions behind an entry of the log had the same reward; rounding is no difference."""
    mean, deviation = finite(metrics.get("reward")), finite(metrics.get("reward_std"))
    if mean is None or deviation is None or metrics.get("rewards/skipped_fraction") == 1:
        return False
    return deviation <= 1e-6 * abs(mean)


def _combine(name: str, old: float, new: float, share: float) -> float:
    kind = name.rsplit("/", 1)[-1]
    if kind == "max":
        return max(old, new)
    if kind == "min":
        return min(old, new)
    if math.isinf(old) or math.isinf(new):
        # The difference below would turn one infinity into NaN, which hides what happened.
        return old + new
    return old + (new - old) * share
