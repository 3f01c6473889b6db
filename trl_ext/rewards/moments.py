# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Means, variances and regression lines of streams of numbers, merged without keeping them."""

import math
from typing import NamedTuple, TypeVar

from trl_ext.processes import gather


class Moments(NamedTuple):
    """Number, mean and summed squared deviation from the mean of some numbers."""

    n: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: list[float]) -> "Moments":
        """Return the moments of `values`."""
        if not values:
            return cls()
        mean = math.fsum(values) / len(values)
        return cls(float(len(values)), mean, math.fsum((value - mean) ** 2 for value in values))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together (Chan, Golub & LeVeque 1979)."""
        count = self.n + other.n
        if count == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * other.n / count
        squares = self.squares + other.squares + shift * shift * self.n * other.n / count
        return Moments(count, mean, squares)

    @property
    def std(self) -> float:
        """Population standard deviation; 0 with fewer than two numbers."""
        return math.sqrt(self.squares / self.n) if self.n > 1 else 0.0


class LineMoments(NamedTuple):
    """Number of (x, y) pairs, their means, and the sums of squares and of products of the deviations from them."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    @classmethod
    def of(cls, points: list[tuple[float, float]]) -> "LineMoments":
        """Return the moments of (x, y) pairs."""
        if not points:
            return cls()
        n = float(len(points))
        mean_x, mean_y = math.fsum(x for x, _ in points) / n, math.fsum(y for _, y in points) / n
        deviations = [(x - mean_x, y - mean_y) for x, y in points]
        xx, yy = math.fsum(x * x for x, _ in deviations), math.fsum(y * y for _, y in deviations)
        return cls(n, mean_x, mean_y, xx, yy, math.fsum(x * y for x, y in deviations))

    def merge(self, other: "LineMoments") -> "LineMoments":
        """Return the moments of both sets together (Chan, Golub & LeVeque 1979)."""
        count = self.n + other.n
        if count == 0:
            return self
        dx, dy, weight = other.x - self.x, other.y - self.y, self.n * other.n / count
        return LineMoments(
            count,
            self.x + dx * other.n / count,
            self.y + dy * other.n / count,
            self.xx + other.xx + dx * dx * weight,
            self.yy + other.yy + dy * dy * weight,
            self.xy + other.xy + dx * dy * weight,
        )

    @property
    def slope(self) -> float:
        """Slope of the least-squares line of y over x; 0 where all x are equal."""
        return self.xy / self.xx if self.xx > 0 else 0.0

    @property
    def correlation(self) -> float:
        """Pearson's correlation; 0 where all x or all y are equal."""
        return self.xy / math.sqrt(self.xx * self.yy) if self.xx > 0 and self.yy > 0 else 0.0


AnyMoments = TypeVar("AnyMoments", Moments, LineMoments)


def merge_over_processes(moments: AnyMoments) -> AnyMoments:
    """Return the moments over the numbers of all processes; a collective if torch.distributed runs."""
    total = type(moments)()
    for part in gather(tuple(moments)):
        total = total.merge(type(moments)(*part))
    return total
