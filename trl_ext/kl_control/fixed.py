# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A coefficient that stays as it is."""

import warnings
from typing import Any

from trl_ext.messages.advice import answers_unknown

from ._checks import check_state, is_usable, require_non_negative


@answers_unknown("argument")
class FixedKL:
    """Keeps one coefficient, whatever the KL does.

    Args:
        coef: the coefficient; 0 turns the penalty off.

    Raises:
        ValueError: `coef` is negative or not finite.
    """

    def __init__(self, coef: float) -> None:
        require_non_negative("coef", coef)
        self.coef = float(coef)

    @classmethod
    def from_options(cls, *, kl_coef: float) -> "FixedKL":
        """Return the controller that these settings describe."""
        return cls(kl_coef)

    def __repr__(self) -> str:
        return f"FixedKL({self.coef:.4g})"

    def update(self, kl: float, episodes: int) -> None:
        """Change nothing, but warn about a KL (nats per completion) that is not finite."""
        is_usable(kl, episodes)

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficient."""
        return {"controller": type(self).__name__, "coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the coefficient, a setting, and warn where the saved one differs; refuse the state of another class."""
        check_state(self, state, ["coef"])
        require_non_negative("coef", state["coef"])
        if state["coef"] != self.coef:
            warnings.warn(
                f"The fixed KL coefficient is {self.coef:g}, and was {state['coef']:g} when the checkpoint was "
                "written; the run goes on with the new one.",
                stacklevel=2,
            )
