# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The reward of what is written so far, for a critic that reads it.

A critic may know more than the policy: what it reads reaches the policy through the advantages alone (asymmetric
actor-critic, Pinto et al. 2017, arXiv 1710.06542). The reward of the beginning of a completion is known when the rest
is written, and a critic that reads it need not learn the reward function by heart.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from trl_ext.rewards import Scores
from trl_ext.rewards.base import Batch
from trl_ext.text.rows import Text


class Beginning(NamedTuple):
    """The beginning of a completion: the completion's index, and the number of its tokens."""

    sample: int
    tokens: int


def beginnings_of(
    batch: Batch, every: int, decode: Callable[[Sequence[Beginning]], Sequence[Text]]
) -> tuple[list[Beginning], Batch]:
    """Return the beginnings of completions after each `every` tokens, without whole completions, to be scored.

    Args:
        batch: N completions, with their tokens.
        every: Tokens from one beginning to the next.
        decode: Returns the completion that each beginning is, as a text or conversation.
    """
    ids = batch.completion_ids or []
    parts = [Beginning(i, n) for i, row in enumerate(ids) for n in range(every, len(row), every)]
    chosen = replace(
        batch.select([part.sample for part in parts]),
        completions=list(decode(parts)) if parts else [],
        completion_ids=[ids[part.sample][: part.tokens] for part in parts],
    )
    return parts, chosen


def rewards_so_far(
    parts: Sequence[Beginning], found: Scores, wholes: Scores, ids: Sequence[list[int]], width: int
) -> Tensor:
    """Return the reward of what was written before each token of N completions, and after their last ones.

    Args:
        parts: The beginnings that were scored.
        found: Their scores; one that could not be scored counts as the beginning before it.
        wholes: The scores of the completions.
        ids: Token ids of the completions.
        width: Columns of the rollout, C.

    Returns:
        Shape (N, C + 1), on the CPU: 0 before the first beginning, then the reward of the latest one, and from the end
        of the completion on its own reward.
    """
    so_far = torch.zeros(len(ids), width + 1)
    scored = _learned(found).tolist()
    for (sample, tokens), reward, valid in zip(parts, scored, found.valid.tolist(), strict=True):
        if valid:
            so_far[sample, tokens:] = reward
    for sample, reward in enumerate(_learned(wholes).tolist()):
        so_far[sample, len(ids[sample]) :] = reward
    return so_far


def _learned(scores: Scores) -> Tensor:
    return scores.total if scores.learned is None else scores.learned
