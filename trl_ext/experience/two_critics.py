# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Two critics, each of which learns from its own half of the prompts (AsyPPO, arXiv 2510.01656).

Values are the mean of both. Where the critics agree, the state holds little that the policy could learn: the advantages
of those tokens count as 0. The paper also leaves states on which the critics disagree out of its entropy bonus; that is
not done here.
"""

import torch
from torch import Tensor

from trl_ext.processes import Reduce, gather

from .prompt_hash import prompt_hashes
from .rollout import Rollout

__all__ = ["critics_of", "disagreement", "mask_agreement", "own_values"]


def critics_of(rollout: Rollout) -> Tensor:
    """Return which critic, 0 or 1, learns from each sample; int64, shape (N,). It follows from the prompt alone."""
    return prompt_hashes(rollout) % 2


def own_values(values: Tensor, gap: Tensor | None, batch: Rollout) -> Tensor:
    """Return the values of the critic that learns from each sample, (B, C), whose gradient reaches no other critic.

    Args:
        values: Means of two critics, or the values of a single one, (B, C).
        gap: Half of what the second critic's values exceed the first one's by, (B, C); None with a single critic.
        batch: The samples.
    """
    return values if gap is None else values + (2 * critics_of(batch) - 1).unsqueeze(1) * gap


def mask_agreement(rollout: Rollout, share: float) -> None:
    """Set the advantages to 0 at the `share` of all processes' tokens on which the critics agree most.

    The standard deviation of two values is the size of `value_gap`. Tokens with equal ones are masked together or not
    at all, and never more than `share`: none before the critics have learned anything.
    """
    if rollout.value_gap is None or share == 0:
        return
    sizes = rollout.value_gap.abs()
    everyone = sorted(size for part in gather(sizes[rollout.completion_mask].tolist()) for size in part)
    if everyone:
        rollout.advantages = torch.where(sizes < everyone[int(share * len(everyone))], 0.0, rollout.advantages)


def disagreement(rollout: Rollout, reduce: Reduce) -> dict[str, float]:
    """Return the metric `critic_disagreement`: the mean standard deviation of the values of two critics."""
    if rollout.value_gap is None:
        return {}
    mask = rollout.completion_mask
    total, count = reduce((rollout.value_gap.abs() * mask).sum()), reduce(mask.sum())
    return {"critic_disagreement": float(total / count.clamp(min=1))}
