# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Whether an optimizer step counts, and for whom: the gate, and the groups of the critic."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .actor_critic import ActorCritic
from .processes import Reduce
from .sharding import engine_of, local

logger = logging.get_logger(__name__)

# A run ends after this many rollouts in a row without an optimizer step.
MAX_LOST_ROLLOUTS = 3


@dataclass(frozen=True)
class StepLimits:
    """Bounds beyond which a minibatch or the rest of a rollout's passes is skipped; every field as in `PPOConfig`."""

    max_ratio: float | None
    max_loss: float | None
    target_approx_kl: float | None


class StepGate:
    """Takes or skips optimizer steps.

    A closed gate leaves weights, moments and weight decay alone. It sits inside the `step` that accelerate and fp16's
    gradient scaler call, so that both count steps as usual and need no signal.

    Attributes:
        is_open: Whether the next step is taken.
        stopped: Whether the remaining passes over the rollout in use are skipped.
        stepped: Whether the last optimizer step was taken, by the gate and by fp16's gradient scaler.
        is_warming_up: Whether the critic alone learns from the optimizer step under way (`critic_warmup_rollouts`).
    """

    def __init__(self) -> None:
        self.is_open, self.stopped, self.stepped, self.is_warming_up = True, False, False, False
        self._taken = 0  # steps taken on the rollout in use
        self._lost = -1  # rollouts in a row without a step; the first rollout has none before it
        self._optimizer: Any = None
        self._by_group = False  # whether the optimizer has the critic in groups of its own, which alone may be stepped

    def guard(self, optimizer: Any) -> None:
        """Put the gate into `optimizer` (or the one that accelerate's wrapper holds); once for each optimizer."""
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if optimizer is self._optimizer:
            return
        self._optimizer, step = optimizer, optimizer.step

        def guarded(_: Any, *args: Any, **kwargs: Any) -> Any:
            self.stepped = self.is_open
            if not self.is_open:
                return None
            self._taken += 1
            if self.is_warming_up and self._by_group:
                groups = (group for group in optimizer.param_groups if not group.get("critic"))
                drop_gradients(p for group in groups for p in group["params"])
            return step(*args, **kwargs)

        optimizer.step = MethodType(guarded, optimizer)

    def silence(self, policy: Iterable[nn.Parameter]) -> None:
        """Make the policy's gradients zero and skip its groups while the critic warms up; ZeRO lets none be dropped."""
        self._by_group = True
        for parameter in policy:
            parameter.register_hook(lambda gradient: torch.zeros_like(gradient) if self.is_warming_up else gradient)

    def begin_rollout(self, learning_rate: float) -> None:
        """Begin a new rollout; `learning_rate` is named in the message.

        Raises:
            RuntimeError: when no step was taken on any of the last `MAX_LOST_ROLLOUTS` rollouts.
        """
        self._lost = 0 if self._taken else self._lost + 1
        self._taken, self.stopped = 0, False
        if self._lost >= MAX_LOST_ROLLOUTS:
            raise RuntimeError(
                f"Every minibatch of the last {self._lost} rollouts was skipped, so the run learns nothing; the log "
                "says why each was skipped. Resume from a checkpoint before that with a `learning_rate` below "
                f"{learning_rate:g}, or raise `max_ratio` or `max_loss` where they are too tight."
            )

    def decide(
        self,
        model: ActorCritic,
        metrics: Mapping[str, float],
        limits: StepLimits,
        *,
        step: int,
        scaled: bool,
        reduce: Reduce,
        empty: bool = False,
    ) -> bool:
        """Open or close the gate after the last micro-batch of an optimizer step; every process decides alike.

        Under DeepSpeed this ends the step too.

        Args:
            model: Its gradients are dropped where the gate closes.
            metrics: Means of `token_losses` over the minibatch; empty where the passes were stopped.
            limits: Bounds of the ratio, the loss and the approximate KL.
            step: Optimizer steps taken so far, for messages.
            scaled: Whether fp16's gradient scaler is in use, which skips infinite gradients itself.
            reduce: Sums a tensor over processes.
            empty: Whether the minibatch has nothing to learn from. Momentum and weight decay would move the weights.

        Returns:
            Whether the step leaves the weights alone, by the gate or by the scaler.
        """
        stopped, self.stepped = self.stopped, False
        self.is_open = not stopped and not empty and _within(metrics, limits, step)
        if empty and not stopped:
            logger.warning(f"Step {step}: minibatch skipped, none of its completions has a reward.")
        if (engine := engine_of(model)) is not None:
            broken = engine.settle(learns=self.is_open, idle=stopped)
        else:
            if self.is_warming_up:
                drop_gradients(p for _, p in model.actor_parameters())
            broken = self.is_open and not gradients_are_finite(model.parameters(), reduce)
        if broken and not scaled:
            logger.warning(f"Step {step}: minibatch skipped, its gradient is not finite.")
            self.is_open = False
        if not self.is_open:
            drop_gradients(model.parameters(), keep_one=scaled)
        bound = limits.target_approx_kl
        if bound is not None and not stopped and metrics["approx_kl"] > bound:
            self.stopped = True
        return broken or not self.is_open

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, and whether the passes are stopped, that a resumed run goes on with."""
        return {"taken": self._taken, "lost": self._lost, "stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._taken, self._lost, self.stopped = state["taken"], state["lost"], state["stopped"]


def _within(metrics: Mapping[str, float], limits: StepLimits, step: int) -> bool:
    """Return whether a minibatch may be learned from; warn if not."""
    loss, ratio = metrics["loss"], metrics["ratio/mean"]
    finite = abs(loss) < float("inf") and abs(ratio) < float("inf")
    too_far = limits.max_ratio is not None and ratio > limits.max_ratio
    too_large = limits.max_loss is not None and abs(loss) > limits.max_loss
    if finite and not too_far and not too_large:
        return True
    logger.warning(
        f"Step {step}: minibatch skipped, its loss is {loss:.4g} and its mean ratio {ratio:.4g}; if this happens "
        "often, lower `learning_rate` or `num_ppo_epochs`."
    )
    return False


def split_critic(
    optimizer: torch.optim.Optimizer, critic: Iterable[tuple[str, nn.Parameter]], learning_rate: float | None
) -> None:
    """Move the critic's parameters into groups of their own in a new optimizer.

    Args:
        optimizer: The Trainer's.
        critic: Names and parameters.
        learning_rate: Their learning rate; None leaves them where they are, and 0 takes them out of the optimizer.
    """
    if learning_rate is None:
        return
    chosen = {id(p) for _, p in critic}
    groups = list(optimizer.param_groups)
    for group in groups:
        split = {**group, "params": [p for p in group["params"] if id(p) in chosen]}
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
        if split["params"] and learning_rate:
            optimizer.add_param_group({**split, "lr": learning_rate, "critic": True})


def drop_gradients(parameters: Iterable[nn.Parameter], *, keep_one: bool = False) -> None:
    """Remove gradients; `keep_one` leaves a gradient of zero, which fp16's scaler needs, to one trainable parameter."""
    for parameter in parameters:
        keep = keep_one and parameter.requires_grad
        parameter.grad = torch.zeros_like(parameter) if keep else None
        keep_one = keep_one and not keep


@torch.no_grad()
def gradients_are_finite(parameters: Iterable[nn.Parameter], reduce: Reduce) -> bool:
    """Return whether the norm of all gradients is finite on every process."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if not gradients:
        return True
    norm = torch.nn.utils.get_total_norm(gradients)
    return not reduce((~torch.isfinite(norm)).float())
