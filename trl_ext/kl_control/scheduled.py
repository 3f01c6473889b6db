# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A coefficient that follows a curve."""

import math
from typing import Any

from trl_ext.messages.advice import answers_unknown

from ._checks import check_state, is_usable, require_non_negative, require_positive

SHAPES = ("linear", "cosine", "exponential")


@answers_unknown("argument")
class ScheduledKL:
    """Moves the coefficient from `start` to `end` over a number of episodes, and leaves it there.

    With x the share of the episodes seen: linear, `start + (end - start) * x`; cosine, flat at both ends,
    `end + (start - end) * (1 + cos(pi * x)) / 2`; exponential, the same factor everywhere, `start * (end / start)^x`.

    Args:
        start: coefficient at the beginning.
        end: coefficient after `episodes`.
        episodes: completions over which it moves, over all processes.
        shape: "linear", "cosine" or "exponential".

    Raises:
        ValueError: start or end is negative (or 0 with the exponential shape), episodes is not positive, or the shape
            is unknown.
    """

    def __init__(self, start: float, end: float, episodes: int, shape: str = "linear") -> None:
        if shape not in SHAPES:
            raise ValueError(f"shape is {shape!r}; use one of {', '.join(SHAPES)}.")
        check = require_positive if shape == "exponential" else require_non_negative
        check("start", start)
        check("end", end)
        require_positive("episodes", episodes)
        self.start = float(start)
        self.end = float(end)
        self.episodes = episodes
        self.shape = shape
        self._seen = 0
        self.coef = self._at(0.0)

    @classmethod
    def from_options(
        cls, *, kl_coef: float, kl_coef_end: float, episodes: int, kl_schedule: str = "linear"
    ) -> "ScheduledKL":
        """Return the controller that these settings describe, over `episodes` completions.

        Raises:
            ValueError: an exponential curve begins or ends at 0.
        """
        if kl_schedule == "exponential" and not (kl_coef > 0 and kl_coef_end > 0):
            raise ValueError(
                f"`kl_schedule='exponential'` multiplies the coefficient, so `kl_coef` and `kl_coef_end` must be above "
                f"0, got {kl_coef} and {kl_coef_end}."
            )
        return cls(kl_coef, kl_coef_end, episodes, kl_schedule)

    def __repr__(self) -> str:
        curve = f"{self.start}, {self.end}, episodes={self.episodes}, shape={self.shape!r}"
        return f"ScheduledKL({curve}) at {self.coef:.4g}"

    def update(self, kl: float, episodes: int) -> None:
        """Count the episodes; an update whose KL is not finite is ignored with a warning."""
        if is_usable(kl, episodes):
            self._seen += int(episodes)
            self.coef = self._at(min(1.0, self._seen / self.episodes))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of episodes seen; the coefficient follows from it."""
        return {"controller": type(self).__name__, "episodes_seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the episodes seen, and so the coefficient; raise ValueError for the state of another class."""
        check_state(self, state, ["episodes_seen"])
        require_non_negative("episodes_seen", state["episodes_seen"])
        self._seen = int(state["episodes_seen"])
        self.coef = self._at(min(1.0, self._seen / self.episodes))

    def _at(self, x: float) -> float:
        if self.shape == "linear":
            coef = self.start + (self.end - self.start) * x
        elif self.shape == "cosine":
            coef = self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * x)) / 2.0
        else:
            coef = self.start * (self.end / self.start) ** x
        # Rounding may carry the coefficient past an end by the last bit.
        coef = min(max(coef, min(self.start, self.end)), max(self.start, self.end))
        return self.end if x == 1.0 else coef
