# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Means over the tokens of a minibatch that arrives in several micro-batches, on several processes."""

import torch
from torch import Tensor

from trl_ext.objectives import masked_sum
from trl_ext.processes import Reduce


class TokenMeans:
    """Adds up per-token quantities until the minibatch is complete.

    Sums and token counts are kept apart and divided once at the end, so that long and short micro-batches weigh by
    their tokens. Names that end in `/max` keep their largest value instead.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, per_token: dict[str, Tensor], mask: Tensor) -> None:
        """Add the quantities of one micro-batch.

        Args:
            per_token: Quantities of shape (B, C), by name; the same names every time.
            mask: True for tokens that count, shape (B, C).
        """
        self._add("tokens", masked_sum(torch.ones(mask.shape, device=mask.device), mask))
        for name, values in per_token.items():
            if name.endswith("/max"):
                highest = torch.where(mask.bool(), values, -torch.inf).max()
                self._sums[name] = torch.maximum(self._sums.get(name, highest), highest)
            else:
                self._add(name, masked_sum(values, mask))

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self, reduce: Reduce) -> dict[str, float]:
        """Return the means (and largest values) over all processes, none where nothing was added, and start anew.

        Args:
            reduce: `reduce(tensor, "sum" | "max")` over processes.
        """
        sums, self._sums = self._sums, {}
        if not sums:
            return {}
        means = [name for name in sums if not name.endswith("/max")]
        totals = reduce(torch.stack([sums[name].float() for name in means]), "sum").tolist()
        values = dict(zip(means, totals, strict=True))
        tokens = values.pop("tokens")
        highest = {name: float(reduce(value, "max")) for name, value in sums.items() if name.endswith("/max")}
        if not tokens:
            return dict.fromkeys(values, 0.0)  # the largest of no values is none
        return {name: value / tokens for name, value in values.items()} | highest
