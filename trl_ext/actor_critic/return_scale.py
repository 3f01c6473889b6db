# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`ReturnScale`: the running mean and spread of returns, in whose units a critic learns."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trl_ext.objectives import global_moments
from trl_ext.processes import Reduce
from trl_ext.sharding import local

from .value_head import ValueHead

SCALE_FILE = "return_scale.safetensors"
# Weight of the past at each update: the moments are those of about the last ten rollouts.
_DECAY = 0.9


def has_learned(head: nn.Linear, reduce: Reduce) -> bool:
    """Return whether any weight of a value head, of which this process may hold but a part, is not zero."""
    weights, bias = local(head.weight), local(head.bias)
    return bool(reduce((weights.any() | bias.any()).float()))


class ReturnScale(nn.Module):
    """Turns the output of a value head, in standard deviations around the mean return, into units of the reward.

    As in PopArt (van Hasselt et al. 2016, arXiv 1602.07714): the moments follow the returns, and whenever they move the
    head is rewritten so that its values stay as they were. The value loss, divided by `std`, and its gradients then do
    not depend on the unit of the reward. A scale that was never updated changes nothing.

    Attributes:
        mean: Mean return, 0-dim.
        std: Standard deviation of the returns, 0-dim.
        weight: Weight of the rollouts seen, from 0 before the first to 1; 0-dim.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, outputs: Tensor) -> Tensor:
        """Return values in units of the reward for outputs of a value head; both of any shape, float32."""
        return outputs * self.std.float() + self.mean.float()

    def standardized(self, rewards: Tensor) -> Tensor:
        """Return rewards in standard deviations around the mean return, float32: what a value head reads."""
        return (rewards - self.mean.float()) / self.std.float()

    @torch.no_grad()
    def update(self, head: ValueHead, returns: Tensor, mask: Tensor, reduce: Reduce, *, decay: float = _DECAY) -> None:
        """Take the returns of a rollout into account.

        Args:
            head: The value head, which is rewritten so that its values stay. A head that is still zero predicts the
                new mean instead, since it has learned nothing that could be kept.
            returns: Returns in units of the reward, of any shape.
            mask: The tokens that count, of the same shape.
            reduce: Sums a tensor over processes, which all end with the same moments.
            decay: Weight of the past; 0 forgets it.
        """
        mean, variance, count = (float(moment) for moment in global_moments(returns, mask, reduce))
        if count == 0:
            return
        weight = decay * float(self.weight) + 1 - decay
        share, old_mean, old_std = (1 - decay) / weight, float(self.mean), float(self.std)
        new_mean = old_mean + share * (mean - old_mean)
        between = share * (1 - share) * (mean - old_mean) ** 2
        new_std = ((1 - share) * old_std**2 + share * variance + between) ** 0.5
        if new_std <= 1e-6 * abs(new_mean):  # equal returns, whose spread is rounding noise
            new_std = old_std
        if has_learned(head, reduce):
            weights, bias = local(head.weight), local(head.bias)
            weights.mul_(self.std / new_std)
            bias.copy_((bias * self.std + self.mean - new_mean) / new_std)
            if head.reward_weight is not None and head.reward_bias is not None:
                # What the factor reads has moved too: the difference goes into the other weights.
                shift = (new_mean - old_mean) / new_std
                weights.add_(local(head.reward_weight), alpha=shift)
                bias.add_(local(head.reward_bias), alpha=shift)
        self.mean.fill_(new_mean)
        self.std.fill_(new_std)
        self.weight.fill_(weight)

    def save(self, folder: Path) -> None:
        """Write the moments into a critic's folder."""
        save_file(self.state_dict(), folder / SCALE_FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; a folder of an earlier version has none, and its critic's outputs are the values."""
        path = folder / SCALE_FILE
        self.load_state_dict(load_file(path) if path.is_file() else ReturnScale().state_dict())
