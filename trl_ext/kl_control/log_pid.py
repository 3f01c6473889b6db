# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""PID control of a positive coefficient on its logarithm: the arithmetic that every controller of this kind shares."""

import math
from typing import Any

from ._checks import require_coef_in_bounds, require_non_negative, require_positive


class LogPID:
    """Moves a coefficient by `log coef = log init_coef + kp * e + ki * sum(e) + kd * (e - previous e)`.

    In log space a step is a factor, so the same gains serve coefficients of 0.01 and 10.

    Anti-windup by conditional integration: while the coefficient is at a bound, errors that push it further out are
    not summed, so that it leaves the bound soon after the error has changed its sign.

    Args:
        init_coef: the coefficient to start with.
        kp: proportional gain.
        ki: integral gain, per step.
        kd: derivative gain.
        max_error: bound of the error.
        min_coef: lower bound of the coefficient, above 0.
        max_coef: upper bound of the coefficient.

    Raises:
        ValueError: max_error is not positive, a gain is negative, or not 0 < min_coef <= init_coef <= max_coef.
    """

    def __init__(
        self, *, init_coef: float, kp: float, ki: float, kd: float, max_error: float, min_coef: float, max_coef: float
    ) -> None:
        require_positive("max_error", max_error)
        for name, gain in (("kp", kp), ("ki", ki), ("kd", kd)):
            require_non_negative(name, gain)
        require_coef_in_bounds(init_coef, min_coef, max_coef)
        self.coef = float(init_coef)
        self.init_coef = init_coef
        self.kp, self.ki, self.kd = kp, ki, kd
        self.max_error, self.min_coef, self.max_coef = max_error, min_coef, max_coef
        self.integral = 0.0
        self.previous_error: float | None = None

    def step(self, error: float, *, hold: bool = False) -> None:
        """Move the coefficient up where the error is positive, and down where it is negative.

        Args:
            error: The relative error.
            hold: Leave the error out of the sum.
        """
        error = min(max(error, -self.max_error), self.max_error)
        change = 0.0 if self.previous_error is None else error - self.previous_error
        self.previous_error = error

        integral = self.integral if hold else self.integral + error
        log_coef = math.log(self.init_coef) + self.kp * error + self.ki * integral + self.kd * change
        low, high = math.log(self.min_coef), math.log(self.max_coef)
        if not ((log_coef > high and error > 0) or (log_coef < low and error < 0)):
            self.integral = integral
        if low < log_coef < high:
            # exp may miss a bound by the last bit.
            self.coef = self._bounded(math.exp(log_coef))
        else:
            self.coef = float(self.min_coef if log_coef <= low else self.max_coef)

    def state_dict(self) -> dict[str, Any]:
        """Return coefficient, integral, last error (None before the first step) and first coefficient."""
        state = {"coef": self.coef, "integral": self.integral, "previous_error": self.previous_error}
        return {**state, "init_coef": self.init_coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, within the bounds."""
        # The integral was summed from there on. An earlier version did not save it.
        self.init_coef = self._bounded(state.get("init_coef", self.init_coef))
        self.coef = self._bounded(state["coef"])
        self.integral = float(state["integral"])
        previous = state["previous_error"]
        self.previous_error = None if previous is None else float(previous)

    def _bounded(self, coef: float) -> float:
        return float(min(max(coef, self.min_coef), self.max_coef))
