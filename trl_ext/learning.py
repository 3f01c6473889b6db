# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Learning from a rollout: token losses, and minibatches in micro-batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .actor_critic import ForwardOutput
from .experience.rollout import Rollout
from .experience.supervised import SupervisedBatch
from .experience.two_critics import own_values
from .micro_batches import MicroBatches
from .monitoring import TokenMeans
from .objectives import approx_kl, kl_loss, outside_range, policy_loss, value_loss
from .processes import Reduce


@dataclass(frozen=True)
class LossOptions:
    """Bounds and weights of PPO's loss; every field as in `PPOConfig`."""

    cliprange: float
    cliprange_high: float | None
    dual_clip: float | None
    mask_ratio_range: list[float] | None
    cliprange_value: float | None
    vf_coef: float
    entropy_coef: float
    kl_loss_coef: float
    kl_loss_estimator: str
    use_bias_correction_kl: bool


def token_losses(
    out: ForwardOutput, batch: Rollout, options: LossOptions, value_scale: Tensor | float = 1.0
) -> dict[str, Tensor]:
    """Return the loss of every completion token, and the diagnostics that are logged beside it.

    Args:
        out: Log-probabilities, entropies and values of the current weights.
        batch: Old log-probabilities and values, reference log-probabilities, advantages and returns.
        options: Clip ranges and the weights of the terms.
        value_scale: Unit of the value loss and of `cliprange_value`, in units of the reward.

    Returns:
        Tensors of shape (B, C), not masked. `loss` is minimized; the others are terms of it or diagnostics. Without
        values there is no value loss.
    """
    policy, ratio, clipped = policy_loss(
        out.logps,
        batch.old_logps,
        batch.advantages,
        cliprange=options.cliprange,
        cliprange_high=options.cliprange_high,
        dual_clip=options.dual_clip,
    )
    masked = None
    if options.mask_ratio_range is not None:
        low, high = options.mask_ratio_range
        out_of_range = outside_range(out.logps, batch.old_logps, (low, high))
        policy = torch.where(out_of_range, 0.0, policy)
        masked = out_of_range | (batch.weights == 0)  # the engine's ratio was out of the range
    actor = policy * batch.weights - options.entropy_coef * out.entropy
    if options.kl_loss_coef > 0:
        # Both terms are means over tokens of the old policy, which the engine has drawn.
        actor = actor + options.kl_loss_coef * batch.weights * kl_loss(
            out.logps,
            batch.old_logps,
            batch.ref_logps,
            estimator=options.kl_loss_estimator,
            bias_correction=options.use_bias_correction_kl,
        )
    if out.kl is not None:
        # Not weighted by pi / pi_old, nor by the engine's weights: the KL at a state averages over its tokens already.
        # The states are the old policy's, as they are for the surrogate.
        actor = actor + batch.kl_coefs.unsqueeze(1) * out.kl
    losses = {
        "loss": actor,
        "policy_loss": policy,
        "entropy": out.entropy,
        "approx_kl": approx_kl(out.logps, batch.old_logps),
        "clip_fraction": clipped,
        "ratio/mean": ratio,
        "ratio/max": ratio,
        **({} if masked is None else {"masked_fraction": masked}),
    }
    if out.values is not None:
        present = own_values(out.values[:, :-1], None if out.value_gap is None else out.value_gap[:, :-1], batch)
        old = own_values(batch.old_values, batch.value_gap, batch)
        values, old_values, returns = (t / value_scale for t in (present, old, batch.returns))
        value, clipped = value_loss(values, old_values, returns, cliprange_value=options.cliprange_value)
        losses["loss"] = actor + options.vf_coef * torch.where(batch.held_out.unsqueeze(1), 0.0, value)
        losses |= {"value_loss": value, "value_clip_fraction": clipped}
    return losses


@torch.no_grad()
def mean_losses(
    rollout: Rollout, losses: Callable[[Rollout], dict[str, Tensor]], micro_batches: MicroBatches, reduce: Reduce
) -> dict[str, float]:
    """Return the means of `losses`, which gives the token losses of a part of a rollout, over all its tokens.

    The parts are those of the forward passes that gave the old log-probabilities: the ratio is 1 to the last bit.
    """
    means = TokenMeans()

    def measure(rows: Tensor) -> None:
        batch = rollout.select(rows)
        means.add(losses(batch), batch.completion_mask)

    micro_batches.run(rollout.first_pass(1), measure, "in a forward pass over", rollout.lengths)
    return means.take(reduce)


class Minibatch:
    """The samples of one optimizer step.

    Args:
        rollout: The rollout of this process.
        rows: The samples' indices in it, by length, int64, (n,).
        texts: As many texts of PPO-ptx; None without.
        reduce: Sums a tensor over processes.

    Attributes:
        tokens: Completion tokens over all processes, at least 1; 0-dim.
        is_empty: Whether there is nothing to learn from, on any process: no completion with a reward, and no text.
    """

    def __init__(self, rollout: Rollout, rows: Tensor, texts: Rollout | None, reduce: Reduce):
        self.rollout, self.rows = rollout, rows
        tokens = reduce(rollout.completion_mask[rows].sum().float())
        self.tokens, self.is_empty = tokens.clamp(min=1), texts is None and not tokens
        self.texts: SupervisedBatch | None = None
        if texts is not None:
            self.texts = SupervisedBatch(texts, reduce(texts.completion_mask.sum().float()).clamp(min=1))

    def pieces(self, micro_batch: slice, sizes: MicroBatches) -> Iterator[Rollout | SupervisedBatch]:
        """Yield the samples at the positions `micro_batch` of `rows`, then the texts, in pieces that `sizes` allows."""
        for piece in sizes.split(self.rows[micro_batch], self.rollout.lengths):
            yield self.rollout.select(piece)
        if self.texts is not None:
            texts = self.texts.texts
            for piece in sizes.split(texts.first_pass(1)[micro_batch], texts.lengths):
                yield SupervisedBatch(texts.select(piece), self.texts.tokens)


def learn(
    minibatch: Minibatch,
    number: int,
    size: int,
    micro_batches: MicroBatches,
    backward: Callable[[Rollout | SupervisedBatch], Tensor],
    start_again: Callable[[], object],
) -> Tensor:
    """Add the gradients of a micro-batch, in pieces where memory does not suffice for all of it.

    Memory can run out halfway through a backward pass. Only some gradients are in then, so the optimizer step begins
    again with smaller pieces; the rollout stays.

    Args:
        minibatch: The samples of the optimizer step.
        number: Number of the micro-batch in the minibatch.
        size: Samples in a micro-batch.
        micro_batches: Sizes of the pieces.
        backward: Adds the gradients of a piece, and returns its loss.
        start_again: Drops the gradients and the measurements of the optimizer step.

    Returns:
        The loss of the micro-batch.
    """
    loss: Any = None

    def add_gradients(numbers: range) -> None:
        nonlocal loss
        for i in numbers:
            pieces = minibatch.pieces(slice(i * size, (i + 1) * size), micro_batches)
            loss = sum(backward(piece) for piece in pieces)

    numbers = range(number, number + 1)
    while not micro_batches.attempt(partial(add_gradients, numbers), "learning from", learns=True):
        start_again()
        numbers = range(number + 1)
    return loss


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restore the weights and buffers of a model after a block that casts them.

    The Trainer's evaluation in half precision casts them in place, and training would go on with rounded weights.
    """
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(m, name, buffer) for m in model.modules() for name, buffer in m.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
