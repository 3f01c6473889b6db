# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`ValueHead`: from hidden states, and the reward so far where it is read, to values."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ValueHead(nn.Linear):
    """Maps hidden states (..., D) to values (...), in float32 for any precision of trunk and head.

    The weights start at zero, so that every value is 0 before the first update.

    Args:
        hidden_size: D.
        critics: Critics with hidden states of their own, K. Above 1, the head maps (..., K, D) to (..., K).

    Attributes:
        reward_weight: Gives the factor of the reward so far, (K, D); None where the head does not read it.
        reward_bias: The factor's bias, (K,).
    """

    reward_weight: nn.Parameter | None
    reward_bias: nn.Parameter | None

    def __init__(self, hidden_size: int, critics: int = 1):
        super().__init__(hidden_size, critics, dtype=torch.float32)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.register_parameter("reward_weight", None)
        self.register_parameter("reward_bias", None)

    def read_rewards(self) -> None:
        """Let the values depend on the reward so far, by a factor that is a linear function of the hidden state.

        The factor starts at zero: at first the values stay as they are.
        """
        if self.reward_weight is None:
            self.reward_weight = nn.Parameter(torch.zeros_like(self.weight))
            self.reward_bias = nn.Parameter(torch.zeros_like(self.bias))

    @property
    def reads_rewards(self) -> bool:
        """Whether the values depend on the reward so far."""
        return self.reward_weight is not None

    def forward(self, hidden: Tensor, rewards_so_far: Tensor | None = None) -> Tensor:
        """Return the values (...) of hidden states (..., D), in float32.

        Args:
            hidden: Hidden states.
            rewards_so_far: Reward of what was written up to each state, in the units of the values, (...) without K.

        Raises:
            ValueError: when the head reads rewards and gets none, or the other way round.
        """
        if (rewards_so_far is not None) != self.reads_rewards:
            raise ValueError("`rewards_so_far` goes with a value head that reads rewards: `value_head.read_rewards()`.")
        # `.to(torch.bfloat16)`, `bf16_full_eval` and FSDP's mixed precision change the weights' dtype.
        with torch.autocast(hidden.device.type, enabled=False):
            values = self._linear(hidden, self.weight, self.bias)
            if rewards_so_far is None:
                return values
            rewards = rewards_so_far.float()
            factor = self._linear(hidden, self.reward_weight, self.reward_bias)  # type: ignore[arg-type]
            return values + factor * (rewards.unsqueeze(-1) if self.out_features > 1 else rewards)

    def _linear(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.out_features > 1:
            return (hidden.float() * weight.float()).sum(-1) + bias.float()
        return functional.linear(hidden.float(), weight.float(), bias.float()).squeeze(-1)
