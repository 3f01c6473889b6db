# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The KL divergence between two models at every state that one of them visited, summed over the whole vocabulary."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .logprobs import EntropyMode, Scores, in_chunks, log_probabilities, scaled_logits


class Comparison(NamedTuple):
    """Two models at N states, and the token that was chosen in each; nats, at least float32, shape (N,) each.

    Attributes:
        logps: Log-probability of the token under the policy.
        entropy: Entropy of the policy's distribution.
        ref_logps: Log-probability of the token under the reference.
        kl: KL(policy || reference) of the two distributions.
    """

    logps: Tensor
    entropy: Tensor
    ref_logps: Tensor
    kl: Tensor


@torch.no_grad()
def compare(
    hidden: Tensor,
    ref_hidden: Tensor,
    targets: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    ref_head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
) -> Comparison:
    r"""Compare a policy with its reference at N states, `chunk_size` states at a time.

    The KL at a state is \(\sum_v p_v (\log p_v - \log q_v)\). Its sum over the states of a completion that the policy
    sampled estimates the KL of the completions: without bias, never negative, and with less variance than any estimate
    from the sampled tokens alone, because the choice of each token is averaged out (Rao-Blackwell, arXiv 2504.10637).

    Log-probabilities and entropies are those of `logprobs_and_entropy` with the same `chunk_size`, to the last bit.
    Three tensors of shape (chunk_size, V) are in memory at a time, as many as there.

    Args:
        hidden: The policy's last hidden states, shape (N, D).
        ref_hidden: The reference's, shape (N, D').
        targets: Token ids, shape (N,).
        lm_head: Maps (n, D) to the policy's logits (n, V).
        ref_head: Maps (n, D') to the reference's logits (n, V).
        temperature: Sampling temperature, which divides the logits of both.
        chunk_size: Most rows given to a head at a time.

    Returns:
        Without gradients. The KL is 0 where the two are equal to the last bit; a token that the policy rules out
        counts 0; where the reference rules out a token that the policy can choose, the KL is infinite.
    """

    def chunk(h: Tensor, ref_h: Tensor, ids: Tensor) -> Comparison:
        column = ids.unsqueeze(-1)
        log_q = log_probabilities(ref_head, ref_h, temperature)
        ref_logps = log_q.gather(-1, column).squeeze(-1)
        log_p = log_probabilities(lm_head, h, temperature)
        logps = log_p.gather(-1, column).squeeze(-1)
        probs = log_p.exp()
        # In place, for memory. 0 * (-inf - log q), or 0 * (-inf + inf), is NaN, and counts 0. Rounding leaves sums a
        # little below 0.
        kl = log_q.neg_().add_(log_p).mul_(probs).nansum(-1).clamp(min=0)
        entropy = -probs.mul_(log_p).nansum(-1)
        return Comparison(logps, entropy, ref_logps, kl)

    if len(targets) == 0:
        return Comparison(*(hidden.new_zeros(0, dtype=torch.float32) for _ in Comparison._fields))
    rows = [tensor.split(chunk_size) for tensor in (hidden, ref_hidden, targets)]
    return Comparison(*(torch.cat(column) for column in zip(*map(chunk, *rows), strict=True)))


def logprobs_entropy_and_kl(
    hidden: Tensor,
    ref_hidden: Tensor,
    targets: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    ref_head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    chunk_size: int = 512,
    entropy: EntropyMode = "gradient",
    frozen_head: bool = False,
    recompute: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return log-probabilities, entropies and the KL to a reference at N states, all with gradients.

    The gradient of the KL with respect to the policy's logits is \(p_v (\log p_v - \log q_v - \mathrm{KL})\); the
    reference has none. Four tensors of shape (chunk_size, V) are in memory at a time.

    Args:
        hidden: The policy's last hidden states, shape (N, D).
        ref_hidden: The reference's, shape (N, D').
        targets: Token ids, shape (N,).
        lm_head: Maps (n, D) to the policy's logits (n, V); called again in the backward pass, like `ref_head`.
        ref_head: Maps (n, D') to the reference's logits (n, V).
        temperature: Sampling temperature, which divides the logits of both.
        chunk_size, entropy, frozen_head, recompute: As in `logprobs_and_entropy`.

    Returns:
        Nats, at least float32, shape (N,) each. The first two are those of `logprobs_and_entropy` to the last bit.
    """
    if len(targets) == 0:
        empty = hidden.float().sum(-1)  # keeps the graph connected
        return empty, empty, empty

    def score(h: Tensor, ref_h: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            ref_log_probs = log_probabilities(ref_head, ref_h, temperature)
        return Scores.apply(scaled_logits(lm_head, h, temperature), ids, entropy, ref_log_probs)

    frozen = frozen_head and entropy != "gradient"
    logps, entropies, kl = in_chunks(
        score, hidden, ref_hidden, targets, chunk_size=chunk_size, frozen_head=frozen, recompute=recompute
    )
    return logps, entropies, kl
