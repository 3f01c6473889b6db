# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Log-probabilities and entropy of chosen tokens, without ever holding all their logits."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, autograd
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .masking import at_least_float32

EntropyMode = Literal["gradient", "value", "none"]


def scaled_logits(lm_head: Callable[[Tensor], Tensor], hidden: Tensor, temperature: float) -> Tensor:
    """Return the logits (n, V) of hidden states (n, D), divided by the temperature."""
    logits = lm_head(hidden)
    return logits if temperature == 1.0 else at_least_float32(logits) / temperature


def log_probabilities(lm_head: Callable[[Tensor], Tensor], hidden: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities of the whole vocabulary (n, V) at hidden states (n, D), at least float32."""
    return _log_softmax(scaled_logits(lm_head, hidden, temperature))


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


class _Scores(autograd.Function):
    r"""Return the log-probability of each target and the entropy of its distribution, from logits of shape (n, V).

    A tensor of shape (n, V) costs about as much time as a small model's head; this makes two in the forward pass and
    keeps one, where autograd would make and keep several. With \(p\) the softmax, \(H\) the entropy and \(g\) the
    gradients of the two results, that of the logits is \(g_{\log p} (\mathrm{onehot} - p) - g_H\, p\, (\log p + H)\).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, mode: EntropyMode) -> tuple[Tensor, Tensor]:
        log_probs = _log_softmax(logits)
        logps = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        entropy = torch.zeros_like(logps)
        if mode != "none":
            entropy = -log_probs.exp().mul_(log_probs).nansum(-1)  # 0 log 0 = 0, where a token is impossible
        if mode != "gradient":
            ctx.mark_non_differentiable(entropy)
        ctx.save_for_backward(log_probs, targets, entropy)
        ctx.mode, ctx.dtype = mode, logits.dtype
        return logps, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        log_probs, targets, entropy = ctx.saved_tensors
        grad_logps, grad_entropy = (grad.unsqueeze(-1) for grad in grads)
        factor = -grad_logps
        if ctx.mode == "gradient":
            factor = factor - grad_entropy * (log_probs.nan_to_num(neginf=0.0) + entropy.unsqueeze(-1))
        grad = log_probs.exp().mul_(factor).scatter_add_(-1, targets.unsqueeze(-1), grad_logps)
        return grad.to(ctx.dtype), None, None


class _FrozenHead(autograd.Function):
    """Compute a chunk under a head that is not trained: log-probabilities with a gradient, entropies without.

    A row's log-probability depends on that row of `hidden` alone, so its gradient is known in the forward pass up to a
    factor: D numbers a token are kept, and no logits are computed again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, score: Callable) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            rows = hidden.detach().requires_grad_()
            logps, entropy = score(rows, targets)
            logps.sum().backward()
        ctx.save_for_backward(rows.grad)
        ctx.mark_non_differentiable(entropy)
        return logps.detach(), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grads[0].unsqueeze(-1)).to(slope.dtype), None, None


def logprobs_and_entropy(
    hidden: Tensor,
    targets: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
    entropy: EntropyMode = "gradient",
    frozen_head: bool = False,
    recompute: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""Return log-probabilities and entropies of targets under \(\mathrm{softmax}(\mathrm{lm\_head}(h) / T)\).

    Logits exist for `chunk_size` tokens at a time, in float32; in the backward pass each chunk's are computed anew,
    unless that is switched off. For 8 completions of 512 tokens and a vocabulary of 152k the logits alone would take
    2.5 GB, and several times that with their gradients.

    Args:
        hidden: Last hidden states, shape (N, D), one row per token to be scored.
        targets: Token ids, shape (N,).
        lm_head: Maps (n, D) to logits (n, V); called on slices of `hidden`, and again in the backward pass.
        temperature: Sampling temperature that the logits are divided by.
        chunk_size: Most rows given to `lm_head` at a time.
        entropy: Whether a gradient flows through the entropies ("gradient"), or not ("value"), or they are not
            computed at all ("none": zeros).
        frozen_head: Nothing in `lm_head` is trained. Unless a gradient flows through the entropies, the gradient of
            `hidden` is then taken in the forward pass, which saves computing the logits anew.
        recompute: False keeps the probabilities of all N tokens for the backward pass, which takes 4 N V bytes and
            saves computing the logits anew.

    Returns:
        Log-probabilities and entropies in nats, at least float32, each of shape (N,).
    """

    def chunk(h: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return _Scores.apply(scaled_logits(lm_head, h, temperature), ids, entropy)

    if len(targets) == 0:
        # Keeps the graph connected, so that a micro-batch without tokens still takes part in the backward pass.
        empty = hidden.float().sum(-1)
        return empty, empty

    def score(h: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return chunk(h, ids)
        if frozen_head and entropy != "gradient":
            return _FrozenHead.apply(h, ids, chunk)
        if recompute and len(targets) > chunk_size:
            return checkpoint(chunk, h, ids, use_reentrant=False)
        return chunk(h, ids)

    pieces = [score(h, ids) for h, ids in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)]
    logps, entropies = zip(*pieces, strict=True)
    return torch.cat(logps), torch.cat(entropies)
