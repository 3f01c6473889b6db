# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A PID controller of the KL, on the logarithm of the coefficient."""

from typing import Any

from trl_ext.messages.advice import answers_unknown

from ._checks import (
    MAX_COEF,
    MIN_COEF,
    check_state,
    is_finite,
    is_usable,
    require_multipliable,
    require_positive,
)
from .log_pid import LogPID

_UPDATES_TO_ARRIVE = 20
_NONE_AT_FIRST = ("previous_error", "smoothed_kl")


@answers_unknown("argument")
class PIDKL:
    """Holds a target KL with `log coef = log init_coef + kp * e + ki * sum(e) + kd * (e - previous e)` ([`LogPID`]).

    `e = clip(kl / target - 1, -max_error, max_error)`, once per update, whatever the number of episodes. The integral
    finds the coefficient; the proportional part answers at once and so damps the oscillation that integrating alone
    (`AdaptiveKL`) shows when the policy follows the coefficient slowly. The defaults suit a policy that takes 1 to 50
    updates to follow; the integral alone doubles the coefficient in ln 2 / (ki * max_error) = 7 updates at the bound of
    the error. The derivative is off by default, for it amplifies the noise of the measurement; raise `smoothing`
    together with `kd`.

    A run begins at a KL of 0. Until the KL has come to the target for the first time, errors are not summed while it
    rises fast enough to be there within 20 updates: the sum would lower the coefficient because the policy takes its
    time, and the KL would then go past the target.

    Args:
        target: the KL to hold, nats per completion.
        init_coef: the coefficient to start with.
        kp: proportional gain.
        ki: integral gain, per update.
        kd: derivative gain.
        smoothing: weight of the past in an exponential moving average of the measured KL, in [0, 1); 0: none.
        max_error: bound of the relative error.
        min_coef: lower bound of the coefficient, above 0.
        max_coef: upper bound of the coefficient.

    Raises:
        TypeError: an argument is given by position or `target` is missing.
        ValueError: target or max_error is not positive, a gain is negative, smoothing is outside [0, 1), or not
            0 < min_coef <= init_coef <= max_coef.
    """

    def __init__(
        self,
        *,
        target: float,
        init_coef: float = 0.2,
        kp: float = 0.4,
        ki: float = 0.1,
        kd: float = 0.0,
        smoothing: float = 0.0,
        max_error: float = 1.0,
        min_coef: float = MIN_COEF,
        max_coef: float = MAX_COEF,
    ) -> None:
        require_positive("target", target)
        if not (is_finite(smoothing) and 0.0 <= smoothing < 1.0):
            raise ValueError(f"smoothing is {smoothing!r}; it must be at least 0 and below 1.")
        self._pid = LogPID(
            init_coef=init_coef, kp=kp, ki=ki, kd=kd, max_error=max_error, min_coef=min_coef, max_coef=max_coef
        )
        self.coef = self._pid.coef
        self.target = target
        self.smoothing = smoothing
        self._smoothed_kl: float | None = None
        self._arrived = False

    @classmethod
    def from_options(cls, *, kl_coef: float, kl_target: float) -> "PIDKL":
        """Return the controller that these settings describe; raise ValueError where `kl_coef` cannot be multiplied."""
        require_multipliable(kl_coef)
        return cls(target=kl_target, init_coef=kl_coef)

    def __repr__(self) -> str:
        pid = self._pid
        return f"PIDKL(target={self.target}, kp={pid.kp}, ki={pid.ki}, kd={pid.kd}) at {self.coef:.4g}"

    def update(self, kl: float, episodes: int) -> None:
        """Move the coefficient by one step; a KL that is not finite is ignored with a warning."""
        if not is_usable(kl, episodes):
            return
        past = kl if self._smoothed_kl is None else self._smoothed_kl
        self._smoothed_kl = float(self.smoothing * past + (1.0 - self.smoothing) * kl)
        self._arrived = self._arrived or self._smoothed_kl >= self.target
        arriving = self._smoothed_kl + _UPDATES_TO_ARRIVE * (self._smoothed_kl - past) >= self.target
        self._pid.step(self._smoothed_kl / self.target - 1.0, hold=arriving and not self._arrived)
        self.coef = self._pid.coef

    def state_dict(self) -> dict[str, Any]:
        """Return the PID's state, the smoothed KL and arrival; last error and KL are None before the first update."""
        pid, arrived = self._pid.state_dict(), float(self._arrived)
        return {"controller": type(self).__name__, **pid, "smoothed_kl": self._smoothed_kl, "arrived": arrived}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, within the bounds; raise ValueError for the state of another class."""
        # An earlier version summed every error, from the coefficient on that it was made with.
        state = {"arrived": 1.0, "init_coef": self._pid.init_coef, **state}
        started = not (state.get("previous_error") is None and state.get("smoothed_kl") is None)
        # Before the first update these two are None, the only values in a state that are no numbers.
        numbers = state if started else {**state, **{key: 0.0 for key in _NONE_AT_FIRST if key in state}}
        check_state(self, numbers, ["init_coef", "coef", "integral", "arrived", *_NONE_AT_FIRST])
        self._pid.load_state_dict(state if started else {**state, "previous_error": None})
        self.coef = self._pid.coef
        self._smoothed_kl = float(state["smoothed_kl"]) if started else None
        self._arrived = bool(state["arrived"])
