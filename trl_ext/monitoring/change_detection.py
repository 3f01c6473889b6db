# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Two sequential tests for a change in a noisy measurement of a run.

`Drift` tests whether one number a rollout has left the neighbourhood of its start: a cumulative sum, after Page
(1954), "Continuous inspection schemes", Biometrika 41. `Overoptimization` tests whether the gold score has fallen
from its best, or no longer follows the proxy: a scan over pairs of windows, the generalized likelihood ratio
statistic for a change between unknown means of Siegmund & Venkatraman (1995), Annals of Statistics 23(1).

The largest of many statistics is large by chance alone, so the limits are set by simulation (see the tests): of
stationary runs of 60 evaluations, or of 1000 rollouts, 1 to 2 in 100 raise an alarm. Both keep JSON-able state.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# By simulation, see above and the tests.
DRIFT_LIMIT = 8.0
SCAN_LIMIT = 4.5  # of the first evaluations; later the limit grows with the logarithm of their number
_LIMIT_EVALUATIONS, _LIMIT_GROWTH = 60, 3.0
_LARGEST_INCREMENT = 3.0
# Gold no longer follows the proxy when it gains less than this part of its earlier gain, for the same gain of proxy.
_RESPONSE = 0.5
# A fall is at least this part of the gain before it.
_SMALLEST_FALL = 0.05
_FEWEST_EVALUATIONS = 6  # needed to estimate the noise of the proxy
_MOST_BLOCKS = 64
_MOST_DIFFERENCES = 200
_NORMAL_MEDIAN = 0.6744897501960817  # median of |x| for a standard normal x


class Noise:
    """Variance of a series around its trend, from second differences.

    x_(i-1) - 2 x_i + x_(i+1) has six times the variance of a value, and no trend in it (Gasser, Sroka &
    Jennen-Steinmetz 1986, Biometrika 73): the plain variance, or that of first differences, would grow with a
    change and hide it. The median of their absolute values is robust against a sudden change.
    """

    def __init__(self) -> None:
        self.last: list[float] = []
        self.differences: list[float] = []

    def add(self, value: float) -> None:
        """Add the next value."""
        if len(self.last) == 2:
            difference = abs(self.last[0] - 2 * self.last[1] + value)
            self.differences = [*self.differences[1 - _MOST_DIFFERENCES :], difference]
        self.last = [*self.last[-1:], value]

    @property
    def count(self) -> int:
        """Number of differences."""
        return len(self.differences)

    @property
    def variance(self) -> float:
        """Variance of one value; 0 for fewer than three."""
        if not self.differences:
            return 0.0
        return (statistics.median(self.differences) / _NORMAL_MEDIAN) ** 2 / 6

    @property
    def mean_square(self) -> float:
        """Variance of one value that a sudden change raises too; 0 for fewer than three."""
        return statistics.fmean(d**2 for d in self.differences) / 6 if self.differences else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able state for a checkpoint."""
        return {"last": self.last, "differences": self.differences}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.last, self.differences = list(state["last"]), list(state["differences"])


class Drift:
    """One-sided cumulative sum of a measurement against the mean of its first values.

    S <- max(0, S + min(z, 3)), z = (value - (start + max(tolerance, 2 noise))) / noise: only what lies beyond the
    tolerance adds up, so a drift that is certain but small never counts, and no single value can raise the alarm.

    Args:
        tolerance: Gives, from the start's mean, how far above it a value may be; positive.
        warmup: How many values make the start, at least 3.
    """

    def __init__(self, tolerance: float, warmup: int = 10):
        self.tolerance, self.warmup = tolerance, warmup
        self.noise = Noise()
        self.start, self.seen, self.sum = 0.0, 0, 0.0

    def add(self, value: float) -> float:
        """Add the next value and return the evidence, S / limit; 1 raises an alarm."""
        self.noise.add(value)
        self.seen += 1
        if self.seen <= self.warmup:
            self.start += (value - self.start) / self.seen
            return 0.0
        # Where most values are the same, such as no repetition at all in a small rollout, the median tells nothing.
        noise = math.sqrt(self.noise.variance or self.noise.mean_square)
        excess = value - self.start - max(self.tolerance, 2 * noise)
        z = excess / noise if noise > 0 else math.copysign(_LARGEST_INCREMENT, excess)
        self.sum = max(0.0, self.sum + min(z, _LARGEST_INCREMENT))
        return self.sum / DRIFT_LIMIT

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able state for a checkpoint."""
        return {"noise": self.noise.state_dict(), "start": self.start, "seen": self.seen, "sum": self.sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.noise.load_state_dict(state["noise"])
        self.start, self.seen, self.sum = state["start"], state["seen"], state["sum"]


class Finding(NamedTuple):
    """The pair of windows with the strongest evidence of a change.

    Attributes:
        z: Standard errors by which gold is below what it should be; `-inf` where there is nothing to compare.
        step: The last step of the earlier window.
        gold: Mean gold score in the earlier window and in the latest.
        proxy: Mean proxy score in both.
        limit: Standard errors that raise an alarm.
    """

    z: float = -math.inf
    step: int = 0
    gold: tuple[float, float] = (0.0, 0.0)
    proxy: tuple[float, float] = (0.0, 0.0)
    limit: float = SCAN_LIMIT

    @property
    def evidence(self) -> float:
        """Evidence of a change; 1 raises an alarm."""
        return max(0.0, self.z) / self.limit


class Overoptimization:
    """Compares every earlier window of evaluations with the latest ones, in windows of 1, 2, 4, ... evaluations.

    `fall`: gold A - gold B, for an earlier window A and the latest window B, in standard errors.

    `divergence`: gold has come down from A to B, if only a little, while the proxy rose, and it is below what half of
    its earlier response to the proxy had promised: (gold A - gold B) + q (gold A - gold 0) in standard errors, with
    q = 1/2 (proxy B - proxy A) / (proxy A - proxy 0), at most 1, and 0 for the first evaluation. Near the peak, where
    gold falls slowly, that says it much earlier.

    The standard error comes from the differences prompt by prompt where the prompts are the same every time, with
    Student's t turned into a normal variable (Wallace 1959); otherwise from the pooled variance of the samples, or from
    that of the window's own where it is larger: a few of the rare failures of a good policy are no fall. It is never
    taken smaller than the scatter of successive evaluations says, because a policy also really wavers; from three
    evaluations that is hard to tell, so the third to the sixth need clearer evidence than the others.

    More pairs are compared the longer a run is: from 60 evaluations (or rollouts) on the limit grows.

    Args:
        paired: Whether each evaluation is of the same prompts in the same order.
        divergence: Whether to look for a divergence too; otherwise that finding is always empty.
    """

    def __init__(self, *, paired: bool, divergence: bool = True):
        self.paired, self.divergence = paired, divergence
        self.gold_noise, self.proxy_noise = Noise(), Noise()
        # One block is one evaluation, or several old ones: the evaluations in it, the samples behind it, its last
        # step, the proxy's mean, and gold: one mean per prompt if paired, otherwise the mean alone, and the squared
        # deviations of the samples within evaluations.
        self.blocks: list[dict[str, Any]] = []
        self.within, self.freedom = 0.0, 0  # squared deviations within unpaired evaluations, and their degrees

    def add(self, step: int, proxy: float, gold: Sequence[float | None]) -> tuple[Finding, Finding]:
        """Add an evaluation.

        Args:
            step: Optimizer step of the evaluation.
            proxy: Mean of the score that is optimized.
            gold: Gold scores, shape (N,); None where there is none. Without any, nothing happens.

        Returns:
            The strongest evidence of a fall, and of a divergence.
        """
        known, squares = [score for score in gold if score is not None], 0.0
        if not known:
            return Finding(), Finding()
        mean = math.fsum(known) / len(known)
        if self.paired:
            if self.blocks and len(self.blocks[0]["gold"]) != len(gold):
                # other prompts: nothing to compare with
                self.__init__(paired=True, divergence=self.divergence)  # type: ignore[misc]
            last = self.blocks[-1]["gold"] if self.blocks else [mean] * len(gold)
            # A prompt without a score now is taken not to have changed.
            values = [old if score is None else score for score, old in zip(gold, last, strict=True)]
        else:
            values = [mean]
            squares = math.fsum((score - mean) ** 2 for score in known)
            self.within += squares
            self.freedom += len(known) - 1
        self.gold_noise.add(mean)
        self.proxy_noise.add(proxy)
        block = {"looks": 1, "samples": len(known), "step": step, "proxy": proxy, "gold": values}
        self.blocks.append({**block, "squares": squares})
        if len(self.blocks) > _MOST_BLOCKS:
            self._thin_out()
        return self._scan()

    def _thin_out(self) -> None:
        """Merge pairs of blocks in the older half; the first block stays."""
        half = _MOST_BLOCKS // 2
        pairs = [_merged(self.blocks[i], self.blocks[i + 1]) for i in range(1, half, 2)]
        self.blocks = [self.blocks[0], *pairs, *self.blocks[half + 1 :]]

    def _scan(self) -> tuple[Finding, Finding]:
        count = len(self.blocks)
        fall = divergence = Finding()
        sums = _Sums(self.blocks, weigh_by_samples=not self.paired)
        for latest in _lengths(count - 1):
            now = sums.window(np.array([count - latest]), latest)
            for length in _lengths(count - latest):
                earlier = sums.window(np.arange(count - latest - length + 1), length)
                fall = max(fall, self._loudest(earlier, now, np.zeros(len(earlier.looks)), sums))
                shares = self._promised(earlier, now, sums) if self.divergence else np.zeros(0)
                if shares.any():
                    divergence = max(divergence, self._loudest(earlier, now, shares, sums, only=shares > 0))
        longer = max(1.0, sum(block["looks"] for block in self.blocks) / _LIMIT_EVALUATIONS)
        limit = math.sqrt(SCAN_LIMIT**2 + _LIMIT_GROWTH * math.log(longer))
        return fall._replace(limit=limit), divergence._replace(limit=limit)

    def _promised(self, earlier: "_Window", now: "_Window", sums: "_Sums") -> Array:
        """Return q of each earlier window; 0 where the proxy did not certainly rise before and after the window."""
        seen = sum(block["looks"] for block in self.blocks)
        if seen < _FEWEST_EVALUATIONS:
            return np.zeros(len(earlier.looks))
        before, after = earlier.proxy - sums.start.proxy, now.proxy - earlier.proxy
        bar = SCAN_LIMIT * math.sqrt(self.proxy_noise.variance)
        floor = 1e-9 * (1 + np.abs(earlier.proxy).max())  # below this, differences are rounding errors
        risen = before > np.maximum(bar * np.sqrt(1 / earlier.looks + 1 / sums.start.looks), floor)
        risen &= after > np.maximum(bar * np.sqrt(1 / earlier.looks + 1 / now.looks), floor)
        return np.where(risen, np.minimum(_RESPONSE * after / np.where(risen, before, 1.0), 1.0), 0.0)

    def _loudest(
        self, earlier: "_Window", now: "_Window", shares: Array, sums: "_Sums", only: NDArray[np.bool_] | None = None
    ) -> Finding:
        start, q = sums.start, shares
        weights = (1 + q) ** 2, q**2
        differences = (1 + q)[:, None] * earlier.gold - q[:, None] * start.gold - now.gold  # (windows, prompts)
        distance = differences.mean(axis=1)
        if self.paired:
            degrees = differences.shape[1] - 1
            # Below this, differences are rounding errors.
            floor = 1e-9 * (1 + np.abs(earlier.gold).max())
            spread = differences.std(axis=1, ddof=1) if degrees else np.full(len(q), math.inf)
            z = _as_normal(distance / np.maximum(spread / math.sqrt(degrees + 1), floor), max(degrees, 1))
        else:
            pooled = self.within / self.freedom if self.freedom else math.inf
            parts = weights[0] * earlier.error(pooled) + weights[1] * start.error(pooled) + now.error(pooled)
            z = distance / np.maximum(np.sqrt(parts), 1e-9)
        if self.gold_noise.variance > 0:
            parts = weights[0] / earlier.looks + weights[1] / start.looks + 1 / now.looks
            wavers = distance / np.sqrt(self.gold_noise.variance * parts)
            z = np.minimum(z, _as_normal(wavers, 3 * self.gold_noise.count))
        before, after, origin = (window.gold.mean(axis=1) for window in (earlier, now, start))
        fallen = before - after > _SMALLEST_FALL * np.maximum(before - origin, 0)
        z = np.where(fallen if only is None else fallen & only, z, -math.inf)
        i = int(z.argmax())
        proxies = float(earlier.proxy[i]), float(now.proxy[0])
        return Finding(float(z[i]), int(earlier.step[i]), (float(before[i]), float(after[0])), proxies)

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able state for a checkpoint."""
        return {
            "gold_noise": self.gold_noise.state_dict(),
            "proxy_noise": self.proxy_noise.state_dict(),
            "blocks": [dict(block) for block in self.blocks],
            "within": self.within,
            "freedom": self.freedom,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.gold_noise.load_state_dict(state["gold_noise"])
        self.proxy_noise.load_state_dict(state["proxy_noise"])
        self.blocks = [{"squares": 0.0, **block} for block in state["blocks"]]  # earlier versions kept none
        self.within, self.freedom = state["within"], state["freedom"]


class _Window(NamedTuple):
    """S windows: evaluations, samples, squares, last step and mean proxy, of shape (S,); mean gold, (S, prompts)."""

    looks: Array
    samples: Array
    squares: Array
    step: NDArray[np.int64]
    proxy: Array
    gold: Array

    def error(self, pooled: float) -> Array:
        """Return the squared standard errors of unpaired means, (S,), of at least the `pooled` variance."""
        own = self.squares / np.maximum(self.samples - self.looks, 1)
        return np.maximum(own, pooled) / self.samples


class _Sums:
    """Sums from the first block to each, so that the mean of any window is a difference of two."""

    def __init__(self, blocks: list[dict[str, Any]], *, weigh_by_samples: bool):
        kept = ("looks", "samples", "squares")
        self.looks, self.samples, self.squares = (_cumulated([block[key] for block in blocks]) for key in kept)
        weights = np.diff(self.samples if weigh_by_samples else self.looks)
        self.weights = _cumulated(weights)
        self.proxy = _cumulated(weights * [block["proxy"] for block in blocks])
        self.gold = _cumulated(weights[:, None] * np.array([block["gold"] for block in blocks], dtype=float))
        self.steps = np.array([block["step"] for block in blocks])
        self.start = self.window(np.array([0]), 1)

    def window(self, starts: NDArray[np.int64], length: int) -> _Window:
        """Return the windows of `length` blocks that begin at `starts`."""
        ends = starts + length
        weights = self.weights[ends] - self.weights[starts]
        return _Window(
            looks=self.looks[ends] - self.looks[starts],
            samples=self.samples[ends] - self.samples[starts],
            squares=self.squares[ends] - self.squares[starts],
            step=self.steps[ends - 1],
            proxy=(self.proxy[ends] - self.proxy[starts]) / weights,
            gold=(self.gold[ends] - self.gold[starts]) / weights[:, None],
        )


def _cumulated(values: Any) -> Array:
    array = np.asarray(values, dtype=float)
    return np.concatenate([np.zeros((1, *array.shape[1:])), np.cumsum(array, axis=0)])


def _lengths(longest: int) -> list[int]:
    return [2**i for i in range(longest.bit_length())]


def _as_normal(t: Array, degrees: int) -> Array:
    """Return the normal quantiles with the probabilities of Student's t (Wallace 1959)."""
    scale = (8 * degrees + 1) / (8 * degrees + 3)
    return np.sign(t) * scale * np.sqrt(degrees * np.log1p(t * t / degrees))


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return two neighbouring blocks as one, weighted by evaluations."""
    looks = one["looks"] + other["looks"]
    share = other["looks"] / looks
    return {
        "looks": looks,
        "samples": one["samples"] + other["samples"],
        "squares": one["squares"] + other["squares"],
        "step": other["step"],
        "proxy": one["proxy"] + (other["proxy"] - one["proxy"]) * share,
        "gold": [a + (b - a) * share for a, b in zip(one["gold"], other["gold"], strict=True)],
    }
