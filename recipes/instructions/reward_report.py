# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How good a reward model is on held-out pairs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def describe_rewards(
    chosen: Sequence[float], rejected: Sequence[float], chosen_lengths: Sequence[int], rejected_lengths: Sequence[int]
) -> dict[str, Any]:
    """
    Accuracy, calibration, margins and dependence on length.

    Args:
        chosen, rejected: Rewards of both sides of N pairs, in units of the log-odds of being preferred.
        chosen_lengths, rejected_lengths: Their lengths in tokens.

    Returns:
        `accuracy` (ties count half) with its 95% Wilson interval `accuracy_low`, `accuracy_high`; `ece`, the expected
        calibration error of the probability sigmoid(margin) that the preferred side is preferred, and the `reliability`
        behind it as (predicted, observed, pairs); `margins` (N); `length_correlation` of reward and length, over both
        sides, and that of margin and difference in length, `margin_length_correlation` (None where undefined); `pairs`.

    Raises:
        ValueError: if there is no pair.
    """
    if not len(chosen):
        raise ValueError("There is no held-out pair to measure the reward model on; hold some out.")
    margins = np.asarray(chosen, dtype=float) - np.asarray(rejected, dtype=float)
    accuracy = float(((margins > 0) + 0.5 * (margins == 0)).mean())
    low, high = wilson_interval(accuracy, len(margins))
    reliability = _reliability(margins)
    ece = sum(abs(predicted - observed) * n for predicted, observed, n in reliability) / len(margins)
    rewards, lengths = [*chosen, *rejected], [*chosen_lengths, *rejected_lengths]
    differences = np.asarray(chosen_lengths, dtype=float) - np.asarray(rejected_lengths, dtype=float)
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "ece": ece,
        "reliability": reliability,
        "margins": margins.tolist(),
        "margin_mean": float(margins.mean()),
        "length_correlation": _correlation(np.asarray(rewards), np.asarray(lengths, dtype=float)),
        "margin_length_correlation": _correlation(margins, differences),
        "pairs": len(margins),
    }


def wilson_interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927); it never leaves [0, 1]."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _reliability(margins: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    # Which side of a pair comes first says nothing, so both orders count: a prediction p of one is 1 - p of the other.
    # The upper half then holds everything there is to know.
    confidence = 1 / (1 + np.exp(-np.abs(np.clip(margins, -50, 50))))
    right = (margins > 0) + 0.5 * (margins == 0)
    places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    used = [places == i for i in range(bins) if (places == i).any()]
    return [(float(confidence[at].mean()), float(right[at].mean()), int(at.sum())) for at in used]


def _correlation(left: np.ndarray, right: np.ndarray) -> float | None:
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])
