# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a critic explains on completions of held-out prompts, from which it never learns."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trl_ext.experience.rollout import Rollout
from trl_ext.objectives.explained import explained_at, explained_overall, position_moments

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
    sums = torch.zeros(5, width, dtype=torch.float64, device=device)
    for rollout in rollouts:
        if rollout.held_out.any():
            batch = rollout.select(torch.nonzero(rollout.held_out & rollout.valid).squeeze(1))
            sums[:, : batch.completion_length] += _moments(learner, batch.to(device))
    sums = learner.reduce(sums)
    completions = int(sums[0, 0])
    if completions < 2:
        return None
    return {
        "explained_variance": explained_overall(sums),
        "by_position": [
            value if n >= _FEWEST else None for value, n in zip(explained_at(sums), sums[0].tolist(), strict=True)
        ],
        "completions": completions,
        "tokens": int(sums[0].sum()),
    }


def _moments(learner: CriticLearner, batch: Rollout) -> Tensor:
    """Return the moments of a batch by position, (5, C), in standard deviations of the return."""
    scale = learner.model.return_scale
    values, returns = ((t - scale.mean) / scale.std for t in (learner.values(batch), batch.returns))
    return position_moments(values, returns, batch.completion_mask)
