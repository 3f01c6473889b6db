# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Log-probabilities and entropy of chosen tokens, without ever holding all their logits."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def logprobs_and_entropy(
    hidden: Tensor,
    targets: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
) -> tuple[Tensor, Tensor]:
    r"""
    Log-probability of each target and entropy of its distribution, \(\mathrm{softmax}(\mathrm{lm\_head}(h) / T)\).

    Logits exist for `chunk_size` tokens at a time, in float32; in the backward pass each chunk's are computed anew. For
    8 completions of 512 tokens and a vocabulary of 152k the logits alone would take 2.5 GB, and several times that with
    their gradients.

    Args:
        hidden: Last hidden states, shape (N, D), one row per token to be scored.
        targets: Token ids, shape (N,).
        lm_head: Maps (n, D) to logits (n, V); called on slices of `hidden`, and again in the backward pass.
        temperature: Sampling temperature that the logits are divided by.
        chunk_size: Most rows given to `lm_head` at a time.

    Returns:
        Log-probabilities and entropies in nats, float32, each of shape (N,).
    """

    def chunk(h: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = torch.log_softmax(lm_head(h).float() / temperature, dim=-1)
        entropy = -(log_probs.exp() * log_probs.nan_to_num(neginf=0.0)).sum(-1)
        return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), entropy

    if len(targets) == 0:
        # Keeps the graph connected, so that a micro-batch without tokens still takes part in the backward pass.
        empty = hidden.float().sum(-1)
        return empty, empty
    recompute = torch.is_grad_enabled() and len(targets) > chunk_size
    pieces = [
        checkpoint(chunk, h, ids, use_reentrant=False) if recompute else chunk(h, ids)
        for h, ids in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    logps, entropies = zip(*pieces, strict=True)
    return torch.cat(logps), torch.cat(entropies)
