# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Mean and variance of a stream of numbers, merged without keeping them."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch


class Moments(NamedTuple):
    """Number, mean and summed squared deviation from the mean of some numbers."""

    n: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: list[float]) -> "Moments":
        """The moments of `values`; none for an empty list."""
        if not values:
            return cls()
        mean = math.fsum(values) / len(values)
        return cls(float(len(values)), mean, math.fsum((value - mean) ** 2 for value in values))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan, Golub & LeVeque 1979)."""
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


def merge_all(parts: Iterable[Moments]) -> Moments:
    """The moments of all parts together."""
    total = Moments()
    for part in parts:
        total = total.merge(part)
    return total


def merge_over_processes(moments: Moments) -> Moments:
    """The moments of every process's numbers together, the same on each; a collective if torch.distributed runs."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return moments
    parts: list[tuple[float, ...] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, tuple(moments))
    return merge_all(Moments(*part) for part in parts if part is not None)
