# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Confidence intervals: Wilson's of a fraction, and the percentile bootstrap (Efron & Tibshirani 1993, ch. 13).

The unit that the bootstrap resamples is the prompt. In a comparison both models answer the same prompts and the same
resample is taken for both (paired), so what the prompts have in common does not widen the interval of a difference.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from trl_ext.files import without_nan

Values = Sequence[float] | NDArray[np.float64]
Statistic = Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval; all NaN where the quantity is not defined."""

    estimate: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Return the fields for JSON, which has no NaN: None instead."""
        return dict(without_nan(asdict(self)))


def wilson(successes: float, total: float, *, confidence: float = 0.95) -> Interval:
    """Return the confidence interval of a fraction (Wilson 1927, "Probable inference, the law of succession", JASA 22).

    It stays within [0, 1] and is not empty at 0 or 1, unlike the usual normal approximation.

    Args:
        successes: How many; halves are fine.
        total: Of how many; with none, everything is NaN.
        confidence: Probability that the interval covers the true fraction, in (0, 1).

    Raises:
        ValueError: more successes than trials, negative counts, a confidence outside (0, 1).
    """
    if not 0 <= successes <= total or not 0 < confidence < 1:
        raise ValueError(f"Got {successes} successes of {total} and confidence {confidence}: that is no fraction.")
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    fraction, correction = successes / total, z * z / total
    middle = (fraction + correction / 2) / (1 + correction)
    half = z / (1 + correction) * math.sqrt(fraction * (1 - fraction) / total + correction / (4 * total))
    low, high = (0.0 if successes == 0 else middle - half), (1.0 if successes == total else middle + half)
    return Interval(fraction, low, high)


def bootstrap(
    statistic: Statistic, size: int, *, num_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return the interval of any statistic of `size` samples.

    Args:
        statistic: Takes the indices of the samples, with repetitions, and returns a number.
        size: Number of samples.
        num_resamples: Bootstrap resamples.
        confidence: Probability that the interval covers the true value, in (0, 1).
        seed: Calls with the same seed and size take the same resamples.

    Raises:
        ValueError: If there is no sample or `confidence` is not in (0, 1).
    """
    if size < 1:
        raise ValueError("There is no sample to resample; pass at least one value.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is {confidence}; use a number between 0 and 1, such as 0.95.")
    generator = np.random.default_rng(seed)
    estimate = statistic(np.arange(size))
    # One resample at a time: num_resamples * size indices at once would be large for a frontier's samples.
    draws = np.array([statistic(generator.integers(0, size, size)) for _ in range(num_resamples)])
    draws = draws[np.isfinite(draws)]
    if not math.isfinite(estimate) or len(draws) == 0:
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(estimate), float(low), float(high))


def bootstrap_fraction(flags: Sequence[bool], **options: float) -> Interval:
    """Return the interval of the fraction of N flags that hold; `options` as in [`bootstrap`].

    Where all flags are alike their resamples never differ, and 0 of 50 is no proof of 0: the interval is Wilson's then.
    """
    if len(set(flags)) == 1:
        return wilson(sum(flags), len(flags), confidence=options.get("confidence", 0.95))
    return bootstrap_mean([float(flag) for flag in flags], **options)


def bootstrap_mean(values: Values, **options: float) -> Interval:
    """Return the interval of the mean of `values`, shape (N,); `options` as in [`bootstrap`]."""
    array = np.asarray(values, dtype=np.float64)
    return bootstrap(lambda i: float(array[i].mean()), len(array), **options)  # type: ignore[arg-type]
