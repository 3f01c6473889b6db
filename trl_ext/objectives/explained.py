# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a critic explains at each position of a completion, from moments that are pooled over batches and processes.

A mean of the explained variances of small batches is no explained variance: the batches' own variances are too small.
"""

import torch
from torch import Tensor, nn

__all__ = ["explained_at", "explained_in_ranges", "explained_overall", "pooled", "position_moments"]

# With fewer tokens the explained variance is noise.
_FEWEST = 10


def position_moments(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Return number, sum and square sum of the returns, and sum and square sum of the errors, at each position.

    Args:
        values: Values of the states before the tokens, shape (B, C).
        returns: Shape (B, C).
        mask: Shape (B, C).

    Returns:
        Float64, shape (5, C).
    """
    returns = returns.double()
    errors = returns - values
    parts = torch.stack([torch.ones_like(returns), returns, returns**2, errors, errors**2])
    return torch.where(mask, parts, 0.0).sum(dim=1)


def pooled(moments: Tensor | None, more: Tensor) -> Tensor:
    """Return the sum of moments, (..., C) each, where C may differ; None is none."""
    if moments is None:
        return more
    width = max(moments.shape[-1], more.shape[-1])
    return sum(nn.functional.pad(part, (0, width - part.shape[-1])) for part in (moments, more))  # type: ignore[return-value]


def explained_at(moments: Tensor) -> list[float]:
    """Return 1 - Var(errors) / Var(returns) of each column of moments, (5, C); 0 where the returns do not vary."""
    n = moments[0].clamp(min=1)
    means = moments[1::2] / n
    variance, left = moments[2::2] / n - means**2
    # Equal returns have a variance of rounding noise, relative to their size.
    varies = variance > 1e-9 * means[0] ** 2 + 1e-30
    return torch.where(varies, 1 - left / torch.where(varies, variance, 1.0), 0.0).tolist()


def explained_overall(moments: Tensor) -> float:
    """Return the explained variance over all positions of moments, (5, C)."""
    return explained_at(moments.sum(dim=1, keepdim=True))[0]


def explained_in_ranges(moments: Tensor) -> dict[int, float]:
    """Return the explained variance of the first token, the 2nd, tokens 3 to 4, 5 to 8, and so on.

    Args:
        moments: Shape (5, C).

    Returns:
        By the last token of the range; ranges with fewer than ten tokens are left out.
    """
    found, end = {}, 1
    while end // 2 < moments.shape[1]:
        part = moments[:, end // 2 : end]
        if part[0].sum() >= _FEWEST:
            found[end] = explained_overall(part)
        end *= 2
    return found
