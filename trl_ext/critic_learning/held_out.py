# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a critic explains on completions of held-out prompts, from which it never learns."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trl_ext.experience.rollout import Rollout

from .learner import CriticLearner

# With fewer completions at a position the explained variance there is noise.
_FEWEST = 10


@torch.no_grad()
def explained_on_held_out(learner: CriticLearner, rollouts: Sequence[Rollout]) -> dict[str, Any] | None:
    """Return the explained variance of the returns of held-out prompts' completions, overall and by position.

    Args:
        learner: Computes the values.
        rollouts: With `returns` and `held_out`; as many on every process.

    Returns:
        `explained_variance` over all tokens, `by_position` in the completion (None where fewer than ten completions
        are that long), and the numbers of held-out `completions` and of `tokens`; JSON-able. None where no process has
        two held-out completions.
    """
    device = learner.model.device
    width = int(learner.reduce(torch.tensor(max(r.completion_length for r in rollouts), device=device), "max"))
    # Number; sum and square sum of the returns, then of the errors.
    sums = torch.zeros(5, width, dtype=torch.float64, device=device)
    for rollout in rollouts:
        if rollout.held_out.any():
            batch = rollout.select(torch.nonzero(rollout.held_out & rollout.valid).squeeze(1))
            sums[:, : batch.completion_length] += _sums(learner, batch.to(device))
    sums = learner.reduce(sums)
    completions = int(sums[0, 0])
    if completions < 2:
        return None
    return {
        "explained_variance": _explained(sums.sum(dim=1, keepdim=True))[0],
        "by_position": [
            value if n >= _FEWEST else None for value, n in zip(_explained(sums), sums[0].tolist(), strict=True)
        ],
        "completions": completions,
        "tokens": int(sums[0].sum()),
    }


def _sums(learner: CriticLearner, batch: Rollout) -> Tensor:
    """Return number, sums and square sums of returns and of errors at each position, (5, C), in standard deviations."""
    scale = learner.model.return_scale
    returns, errors = (
        (t - m) / scale.std for t, m in ((batch.returns, scale.mean), (batch.returns, learner.values(batch)))
    )
    parts = torch.stack([torch.ones_like(returns), returns, returns**2, errors, errors**2]).double()
    return torch.where(batch.completion_mask, parts, 0.0).sum(dim=1)


def _explained(sums: Tensor) -> list[float]:
    """Return 1 - Var(errors) / Var(returns) of each column; 0 where the returns do not vary."""
    n = sums[0].clamp(min=1)
    variance, left = (sums[2 * i + 2] / n - (sums[2 * i + 1] / n) ** 2 for i in (0, 1))
    varies = variance > 1e-9
    return torch.where(varies, 1 - left / torch.where(varies, variance, 1.0), 0.0).tolist()
