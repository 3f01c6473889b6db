# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The interface of a KL controller."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class KLController(Protocol):
    """Decides how strongly the policy is held to the reference.

    Attributes:
        coef: the coefficient to use now.
    """

    coef: float

    def update(self, kl: float, episodes: int) -> None:
        """Take in one measurement.

        Args:
            kl: mean KL to the reference, nats per completion, over the global batch. `PPOTrainer` measures it exactly
                in every state; an estimate (k1, in TRL's trainers) is noisy and may be slightly negative.
            episodes: completions in that batch, over all processes.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that `update` changes, as JSON types; settings stay with the constructor."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()` bit by bit."""
        ...
