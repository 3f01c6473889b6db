# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a forward pass over completions gives, and how it follows from hidden states."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .trunk import compare_tokens, hidden_states, token_scores

Role = Literal["actor_critic", "actor", "reference", "with_reference"]


class ForwardOutput(NamedTuple):
    """Output of a forward pass over B completions of up to C tokens; 0 outside the completion mask.

    Attributes:
        logps: Log-probability of each completion token at the sampling temperature, nats, float32, shape (B, C).
        entropy: Entropy of the distribution each token was drawn from, nats, float32, shape (B, C).
        values: Value of the state before each token, and in the last column of the state after the last one, float32,
            shape (B, C + 1). Not masked. Only from the critic.
        ref_logps: Log-probability of each completion token under the reference, nats, float32, shape (B, C). Only with
            the role "with_reference".
        kl: KL(policy || reference) at the state before each completion token, summed over the vocabulary, nats,
            float32, shape (B, C). Only with that role, or where the reference's hidden states were given.
        ref_states: The reference's hidden state before each completion token, shape (B, C, D). Not masked. Only with
            that role.
        value_gap: With two critics, whose mean is `values`: half of what the second one's values exceed the first one's
            by, shape (B, C + 1).
    """

    logps: Tensor
    entropy: Tensor
    values: Tensor | None
    ref_logps: Tensor | None = None
    kl: Tensor | None = None
    ref_states: Tensor | None = None
    value_gap: Tensor | None = None


def states_before(trunk: nn.Module, tokens: tuple[Tensor, Tensor], completion_mask: Tensor) -> Tensor:
    """Return the hidden states before each completion token and after the last one, shape (B, C + 1, D).

    Args:
        trunk: The transformer stack.
        tokens: Token ids and attention mask, shape (B, P + C) each.
        completion_mask: Shape (B, C).
    """
    return hidden_states(trunk, *tokens)[:, -completion_mask.shape[1] - 1 :]


def score(
    model: PreTrainedModel,
    states: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    reference: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Return log-probabilities and entropies, shape (B, C); logits are computed for the tokens in `mask` only.

    Args:
        model: The causal LM.
        states: Hidden states, as `states_before` gives them.
        ids: The completion's token ids, shape (B, C).
        mask: Tokens to score, shape (B, C).
        reference: The reference's hidden states before each token, shape (B, C, D), and its function from them to
            logits; the KL to it then comes third.
        options: Of [`token_scores`].
    """
    mask = mask.bool()
    if reference is not None:
        reference = reference[0][mask], reference[1]
    scored = token_scores(model, states[:, :-1][mask], ids[mask], reference=reference, **options)
    return tuple(_placed(row, mask) for row in scored)


def compare(
    policy: PreTrainedModel,
    states: Tensor,
    ref_states: Tensor,
    ref_head: Callable[[Tensor], Tensor],
    ids: Tensor,
    mask: Tensor,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Return log-probabilities, entropies, the reference's log-probabilities and the KL, shape (B, C) each.

    Args:
        policy: The causal LM.
        states: Its hidden states, as `states_before` gives them.
        ref_states: Those of the reference.
        ref_head: Maps the reference's hidden states to its logits.
        ids: The completion's token ids, shape (B, C).
        mask: Tokens to score, shape (B, C).
        options: Of [`compare_tokens`].
    """
    mask = mask.bool()
    before, ref_before = states[:, :-1][mask], ref_states[:, :-1][mask]
    compared = compare_tokens(policy, before, ref_before, ids[mask], ref_head, **options)
    return tuple(_placed(row, mask) for row in compared)


def _placed(values: Tensor, mask: Tensor) -> Tensor:
    """Return values (N,) at the places of a mask with N of them set, and 0 elsewhere, in float32."""
    return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_scatter(mask, values)
