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


class Scores(autograd.Function):
    r"""Return log-probabilities of targets, entropies and, given a reference, KLs, from logits of shape (n, V).

    A tensor of shape (n, V) costs about as much time as a small model's head; this makes two in the forward pass and
    keeps one, where autograd would make and keep several (three and two with a reference). With \(p\) the softmax,
    \(q\) the reference's, \(H\) the entropy, \(K\) the KL and \(g\) the gradients of the three results, that of the
    logits is \(g_{\log p} (\mathrm{onehot} - p) - g_H\, p\, (\log p + H) + g_K\, p\, (\log p - \log q - K)\).
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, mode: EntropyMode, ref_log_probs: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Overwrite `ref_log_probs`, shape (n, V), which carry no gradient."""
        log_probs = _log_softmax(logits)
        logps = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        entropy = torch.zeros_like(logps)
        # The gradient of log-probabilities needs the softmax alone: kept here, it is not computed twice.
        ctx.keeps_softmax = mode == "value" and ref_log_probs is None
        if ctx.keeps_softmax:
            probs = log_probs.exp()
            entropy = -log_probs.mul_(probs).nansum(-1)  # 0 log 0 = 0, where a token is impossible
        elif mode != "none":
            entropy = -log_probs.exp().mul_(log_probs).nansum(-1)
        if mode != "gradient":
            ctx.mark_non_differentiable(entropy)
        ctx.mode, ctx.dtype = mode, logits.dtype
        if ref_log_probs is None:
            ctx.save_for_backward(probs if ctx.keeps_softmax else log_probs, targets, entropy)
            return logps, entropy
        probs = log_probs.exp()
        difference = ref_log_probs.neg_().add_(log_probs).masked_fill_(probs == 0, 0.0)
        kl = probs.mul_(difference).sum(-1).clamp(min=0)
        ctx.save_for_backward(log_probs, targets, entropy, difference, kl)
        return logps, entropy, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits."""
        kept, targets, entropy, *compared = ctx.saved_tensors
        grad_logps, grad_entropy, *grad_kl = (grad.unsqueeze(-1) for grad in grads)
        factor = -grad_logps
        if ctx.mode == "gradient":
            factor = factor - grad_entropy * (kept.nan_to_num(neginf=0.0) + entropy.unsqueeze(-1))
        if compared:
            difference, kl = compared
            factor = (difference - kl.unsqueeze(-1)).mul_(grad_kl[0]).add_(factor)
        grad = kept * factor if ctx.keeps_softmax else kept.exp().mul_(factor)
        grad.scatter_add_(-1, targets.unsqueeze(-1), grad_logps)
        return grad.to(ctx.dtype), None, None, None


class _FrozenHead(autograd.Function):
    """Compute a chunk under a head that is not trained, with a gradient for those results that have one.

    A row's results depend on that row of `hidden` alone, so the gradient of each is known in the forward pass up to a
    factor: D numbers a token and result are kept, and no logits are computed again.
    """

    @staticmethod
    def forward(ctx: Any, score: Callable[..., tuple[Tensor, ...]], hidden: Tensor, *given: Tensor) -> Any:
        with torch.enable_grad():
            rows = hidden.detach().requires_grad_()
            results = score(rows, *given)
            sloping = [i for i, result in enumerate(results) if result.requires_grad]
            slopes: list[Tensor | None] = []
            for i in sloping:  # `autograd.grad` would fail under hooks that look ahead, as those that count operations
                rows.grad = None
                results[i].sum().backward(retain_graph=i != sloping[-1])
                slopes.append(rows.grad)
        ctx.sloping, ctx.count = sloping, len(given)
        ctx.save_for_backward(*slopes)
        flat = tuple(result.detach() for result in results)
        ctx.mark_non_differentiable(*(flat[i] for i in range(len(flat)) if i not in sloping))
        return flat

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total = None
        for i, slope in zip(ctx.sloping, ctx.saved_tensors, strict=True):
            part = (slope * grads[i].unsqueeze(-1)).to(slope.dtype)
            total = part if total is None else total + part
        return None, total, *[None] * ctx.count


def in_chunks(
    score: Callable[..., tuple[Tensor, ...]],
    hidden: Tensor,
    *given: Tensor,
    chunk_size: int,
    frozen_head: bool,
    recompute: bool,
) -> tuple[Tensor, ...]:
    """Return what `score(hidden, *given)` gives, called on `chunk_size` rows at a time.

    Args:
        score: Gives tensors of shape (n,) for n rows.
        hidden: Shape (N, D); the gradient flows to these and to what is trained in `score`.
        given: Tensors of N rows.
        chunk_size: Most rows in a call.
        frozen_head: Nothing in `score` is trained: gradients are taken in the forward pass.
        recompute: Whether several chunks are computed again in the backward pass otherwise.
    """

    def call(*chunk: Tensor) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return score(*chunk)
        if frozen_head:
            return _FrozenHead.apply(score, *chunk)
        if recompute and len(hidden) > chunk_size:
            return checkpoint(score, *chunk, use_reentrant=False)
        return score(*chunk)

    pieces = map(call, *(tensor.split(chunk_size) for tensor in (hidden, *given)))
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


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
    if len(targets) == 0:
        # Keeps the graph connected, so that a micro-batch without tokens still takes part in the backward pass.
        empty = hidden.float().sum(-1)
        return empty, empty

    def score(h: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return Scores.apply(scaled_logits(lm_head, h, temperature), ids, entropy)

    frozen = frozen_head and entropy != "gradient"
    logps, entropies = in_chunks(score, hidden, targets, chunk_size=chunk_size, frozen_head=frozen, recompute=recompute)
    return logps, entropies
