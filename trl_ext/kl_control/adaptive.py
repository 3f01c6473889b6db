# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The proportional controller of Ziegler et al. 2019."""

from typing import Any

from trl_ext.messages.advice import answers_unknown

from ._checks import (
    MAX_COEF,
    MIN_COEF,
    check_state,
    is_usable,
    require_coef_in_bounds,
    require_multipliable,
    require_positive,
)

_UPDATES_TO_DOUBLE = 20


@answers_unknown("argument")
class AdaptiveKL:
    """Multiplies the coefficient by a little more or less than 1, towards a target KL.

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2: `e = clip(kl / target - 1, -clip, clip)` and
    `coef *= 1 + e * episodes / horizon`.

    Their horizon of 10,000 episodes goes with batches of 512. With 16 episodes an update and the error at its bound
    the factor is 1 + 0.2 * 16 / 10000 = 1.00032, and ln 2 / ln 1.00032 = 2,166 updates pass before the coefficient has
    doubled. Without a horizon, the factor at the bound is therefore 2^(1/20) = 1.0353 for any batch: 20 updates
    to double. In Ziegler's terms the horizon is `episodes * clip / (2^(1/20) - 1)`, 5.7 batches at clip = 0.2.

    Args:
        target: the KL to hold, nats per completion.
        init_coef: the coefficient to start with.
        horizon: episodes, as in the paper; None fits it to the batch.
        clip: bound of the relative error.
        min_coef: lower bound of the coefficient, above 0.
        max_coef: upper bound of the coefficient.

    Raises:
        TypeError: an argument is given by position or `target` is missing.
        ValueError: target, horizon or clip is not positive, or not 0 < min_coef <= init_coef <= max_coef.
    """

    def __init__(
        self,
        *,
        target: float,
        init_coef: float = 0.2,
        horizon: float | None = None,
        clip: float = 0.2,
        min_coef: float = MIN_COEF,
        max_coef: float = MAX_COEF,
    ) -> None:
        require_positive("target", target)
        require_positive("clip", clip)
        if horizon is not None:
            require_positive("horizon", horizon)
        require_coef_in_bounds(init_coef, min_coef, max_coef)
        self.coef = float(init_coef)
        self.target = target
        self.horizon = horizon
        self.clip = clip
        self.min_coef = min_coef
        self.max_coef = max_coef

    @classmethod
    def from_options(cls, *, kl_coef: float, kl_target: float, kl_horizon: float | None = None) -> "AdaptiveKL":
        """Return the controller that these settings describe; raise ValueError where `kl_coef` cannot be multiplied."""
        require_multipliable(kl_coef)
        return cls(target=kl_target, init_coef=kl_coef, horizon=kl_horizon)

    def __repr__(self) -> str:
        return f"AdaptiveKL(target={self.target}, horizon={self.horizon}, clip={self.clip}) at {self.coef:.4g}"

    def update(self, kl: float, episodes: int) -> None:
        """Move the coefficient by one step; a KL that is not finite is ignored with a warning."""
        if not is_usable(kl, episodes):
            return
        error = min(max(kl / self.target - 1.0, -self.clip), self.clip)
        if self.horizon is None:
            gain = (2.0 ** (1.0 / _UPDATES_TO_DOUBLE) - 1.0) / self.clip
        else:
            gain = episodes / self.horizon
        self.coef = self._bounded(self.coef * (1.0 + gain * error))

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficient."""
        return {"controller": type(self).__name__, "coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the coefficient, within this controller's bounds; raise ValueError for the state of another class."""
        check_state(self, state, ["coef"])
        self.coef = self._bounded(state["coef"])

    def _bounded(self, coef: float) -> float:
        return float(min(max(coef, self.min_coef), self.max_coef))
