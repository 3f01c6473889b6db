# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""PPO's loss of one micro-batch, token by token, and whether an optimizer step counts."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .actor_critic import ForwardOutput
from .experience.rollout import Rollout
from .objectives import approx_kl, kl_loss, policy_loss, value_loss

# Rollouts in a row without a single optimizer step, after which a run is taken for lost.
MAX_LOST_ROLLOUTS = 3


@dataclass(frozen=True)
class LossOptions:
    """Bounds and weights of PPO's loss; every field as in `PPOConfig`."""

    cliprange: float
    cliprange_high: float | None
    dual_clip: float | None
    cliprange_value: float | None
    vf_coef: float
    entropy_coef: float
    kl_loss_coef: float
    kl_loss_estimator: str
    use_bias_correction_kl: bool


def token_losses(out: ForwardOutput, batch: Rollout, options: LossOptions) -> dict[str, Tensor]:
    """Return the loss of every completion token, and the diagnostics that are logged beside it.

    Args:
        out: Log-probabilities, entropies and values of the current weights.
        batch: Old log-probabilities and values, reference log-probabilities, advantages and returns.
        options: Clip ranges and the weights of the terms.

    Returns:
        Tensors of shape (B, C), not masked. `loss` is minimized; the others are terms of it or diagnostics.
    """
    policy, ratio, clipped = policy_loss(
        out.logps,
        batch.old_logps,
        batch.advantages,
        cliprange=options.cliprange,
        cliprange_high=options.cliprange_high,
        dual_clip=options.dual_clip,
    )
    assert out.values is not None
    value, value_clipped = value_loss(
        out.values[:, :-1], batch.old_values, batch.returns, cliprange_value=options.cliprange_value
    )
    actor = policy * batch.weights - options.entropy_coef * out.entropy
    if options.kl_loss_coef > 0:
        actor = actor + options.kl_loss_coef * kl_loss(
            out.logps,
            batch.old_logps,
            batch.ref_logps,
            estimator=options.kl_loss_estimator,
            bias_correction=options.use_bias_correction_kl,
        )
    return {
        "loss": actor + options.vf_coef * value,
        "policy_loss": policy,
        "value_loss": value,
        "entropy": out.entropy,
        "approx_kl": approx_kl(out.logps, batch.old_logps),
        "clip_fraction": clipped,
        "value_clip_fraction": value_clipped,
        "ratio/mean": ratio,
        "ratio/max": ratio,
    }


class StepGate:
    """Lets an optimizer step through, or not.

    A closed gate leaves weights, moments and weight decay alone. It sits inside whatever calls the optimizer
    (accelerate, fp16's gradient scaler), so that these keep their own books and need no signal.

    Attributes:
        is_open: Whether the next step is taken.
    """

    def __init__(self) -> None:
        self.is_open = True
        self._taken = 0  # steps taken on the rollout in use
        self._lost = -1  # rollouts in a row without a step; the first rollout has none before it
        self._optimizer: Any = None

    def guard(self, optimizer: Any) -> None:
        """Put the gate into `optimizer` (or the one that accelerate's wrapper holds); once for each optimizer."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if optimizer is self._optimizer:
            return
        self._optimizer, step = optimizer, optimizer.step

        def guarded(_: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.is_open:
                return None
            self._taken += 1
            return step(*args, **kwargs)

        optimizer.step = MethodType(guarded, optimizer)

    def check_progress(self, learning_rate: float) -> None:
        """Begin a new rollout.

        Args:
            learning_rate: For the message.

        Raises:
            RuntimeError: when no step was taken on any of the last `MAX_LOST_ROLLOUTS` rollouts.
        """
        self._lost = 0 if self._taken else self._lost + 1
        self._taken = 0
        if self._lost >= MAX_LOST_ROLLOUTS:
            raise RuntimeError(
                f"Every minibatch of the last {self._lost} rollouts was skipped, so nothing is learned any more; the "
                "log says why each was skipped. Resume from a checkpoint before that with a `learning_rate` below "
                f"{learning_rate:g}, or raise `max_ratio` or `max_loss` where they are too tight."
            )

    def state_dict(self) -> dict[str, int]:
        """Counters that a resumed run goes on with."""
        return {"taken": self._taken, "lost": self._lost}

    def load_state_dict(self, state: dict[str, int] | None) -> None:
        """Put back what `state_dict` returned; None, from an older checkpoint, counts as a step taken."""
        state = state or {"taken": 1, "lost": 0}
        self._taken, self._lost = state["taken"], state["lost"]


def drop_gradients(parameters: Iterable[nn.Parameter], *, keep_one: bool = False) -> None:
    """Remove gradients.

    Args:
        parameters: Their owners.
        keep_one: Leave a gradient of zero to the first trainable parameter: fp16's gradient scaler fails without any.
    """
    for parameter in parameters:
        keep = keep_one and parameter.requires_grad
        parameter.grad = torch.zeros_like(parameter) if keep else None
        keep_one = keep_one and not keep


@torch.no_grad()
def gradients_are_finite(parameters: Iterable[nn.Parameter], reduce: Callable[[Tensor], Tensor]) -> bool:
    """Whether the norm of all gradients is finite, on every process.

    Args:
        parameters: Owners of the gradients.
        reduce: Sums a tensor over processes.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return True
    norm = torch.nn.utils.get_total_norm(gradients)
    return not reduce((~torch.isfinite(norm)).float())


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put back the weights and buffers that a model has now, whatever they are cast to in a block.

    The Trainer's evaluation in half precision casts them in place, and training would go on with what was rounded.
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
