# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Sums, means and whitening over the tokens in a mask.

A mask is bool or 0/1, may have holes (tool tokens) and rows without a single token. Values outside the mask are never
read: NaN and infinity there reach neither a result nor a gradient, because values are selected with `torch.where` and
never multiplied by the mask (0 * NaN is NaN).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


def at_least_float32(values: Tensor) -> Tensor:
    """Cast half precision, integers and booleans to float32; float64 stays as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def select(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` in at least float32 where `mask` is set and 0 elsewhere, with a gradient of 0 there.

    Args:
        values: any shape.
        mask: a shape that broadcasts to that of `values`.
    """
    values = at_least_float32(values)
    return torch.where(mask.bool(), values, torch.zeros_like(values))


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum `values` where `mask` is set.

    Args:
        values: any shape, usually (B, C).
        mask: a shape that broadcasts to that of `values`.
        dim: the dimension to sum over; None sums everything to a scalar.

    Returns:
        The sum, without `dim`; 0 where the mask is empty.
    """
    selected = select(values, mask)
    return selected.sum() if dim is None else selected.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Average `values` where `mask` is set; arguments and shapes as in `masked_sum`, 0 where the mask is empty."""
    count = masked_sum(torch.ones_like(at_least_float32(values)), mask, dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


@torch.no_grad()
def global_moments(values: Tensor, mask: Tensor, reduce: Reduce | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased variance and number of the masked values over all processes.

    Two passes, mean first: the one-pass E[x^2] - E[x]^2 cancels in float32. The variance is the biased one (divided by
    the count), so a single value has variance 0 and not NaN. Statistics carry no gradient.

    Args:
        values: (B, C).
        mask: (B, C).
        reduce: sums a tensor over all processes, e.g. `lambda t: accelerator.reduce(t, "sum")`. It is called exactly
            twice for any mask, so that no process waits for another. None: one process.

    Returns:
        `(mean, var, count)`, 0-dim tensors; all 0 where the mask is empty everywhere.
    """
    reduce = reduce or (lambda tensor: tensor)
    count = masked_sum(torch.ones_like(at_least_float32(values)), mask)
    total, count = reduce(torch.stack([masked_sum(values, mask), count])).unbind()
    mean = total / count.clamp(min=1)
    squares = reduce(masked_sum((at_least_float32(values) - mean) ** 2, mask))
    return mean, squares / count.clamp(min=1), count


def whiten(values: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """Scale the masked values to variance 1 over the global batch, as `whiten_with_scale` does; return the values."""
    return whiten_with_scale(values, mask, **options)[0]


def whiten_with_scale(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Reduce | None = None, eps: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """Scale the masked values to variance 1 over the global batch.

    Detail 18 of "The N Implementation Details of RLHF with PPO": advantages are whitened to mean 0
    (`shift_mean=True`), `(x - mean) * rsqrt(var + eps)`; rewards (`shift_mean=False`) keep their mean,
    `(x - mean) * rsqrt(var + eps) + mean`. The mean is added back after the scaling and is itself not scaled, as in
    lm-human-preferences.

    Args:
        values: (B, C).
        mask: (B, C).
        shift_mean: False adds the mean back.
        reduce: as in `global_moments`.
        eps: added to the variance.

    Returns:
        The values, (B, C), 0 outside the mask, and the factor that scaled them, 0-dim. Values that are all equal become
        0 (or keep their value with `shift_mean=False`).
    """
    mean, var, _ = global_moments(values, mask, reduce)
    scale = torch.rsqrt(var + eps)
    whitened = (at_least_float32(values) - mean) * scale
    return select(whitened if shift_mean else whitened + mean, mask), scale
