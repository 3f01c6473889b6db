# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks that the controllers share."""

import math
import numbers
import warnings
from collections.abc import Iterable
from typing import Any

# Bounds of a coefficient that a controller multiplies; a coefficient of 0 would stay 0.
MIN_COEF, MAX_COEF = 1e-4, 1e2


def is_finite(value: object) -> bool:
    """Return whether `value` is a finite number; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value)


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number above 0."""
    if not (is_finite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0.")


def require_non_negative(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number of at least 0."""
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name} is {value!r}; it must be a finite number of at least 0.")


def require_coef_in_bounds(init_coef: float, min_coef: float, max_coef: float) -> None:
    """Raise ValueError unless 0 < min_coef <= init_coef <= max_coef.

    The lower bound is above 0 because a coefficient of 0 can never be multiplied back up.
    """
    require_positive("min_coef", min_coef)
    require_positive("max_coef", max_coef)
    if min_coef > max_coef:
        raise ValueError(f"min_coef is {min_coef} and max_coef {max_coef}; the lower bound must not exceed the upper.")
    if not (is_finite(init_coef) and min_coef <= init_coef <= max_coef):
        raise ValueError(
            f"init_coef is {init_coef!r}, outside [{min_coef}, {max_coef}]; choose it between min_coef and max_coef."
        )


def require_multipliable(kl_coef: float) -> None:
    """Raise ValueError unless a controller that multiplies its coefficient can start with `kl_coef`."""
    if not MIN_COEF <= kl_coef <= MAX_COEF:
        raise ValueError(f"`kl_coef` is multiplied and must be between {MIN_COEF:g} and {MAX_COEF:g}, got {kl_coef}.")


def is_usable(kl: float, episodes: int) -> bool:
    """Return whether a measurement can be learned from; warn if the KL is not finite.

    A batch without episodes measured nothing: its mean KL of 0 is a convention, not an observation.

    Raises:
        ValueError: `episodes` is negative.
    """
    if episodes < 0:
        raise ValueError(f"episodes is {episodes}; pass the number of completions in the batch.")
    if not math.isfinite(kl):
        warnings.warn(
            f"The measured KL is {kl}, so the KL controller ignores this update and keeps its coefficient; "
            "look for NaN or infinity in the log-probabilities.",
            stacklevel=3,
        )
        return False
    return episodes > 0


def check_state(controller: object, state: dict[str, Any], numbers: Iterable[str]) -> None:
    """Raise ValueError unless `state` was saved by a controller of the same class.

    Args:
        controller: the one that is to load it.
        state: what `state_dict()` returned.
        numbers: its keys apart from "controller"; each value must be a finite number.
    """
    name = type(controller).__name__
    expected = {"controller", *numbers}
    if set(state) != expected:
        missing, foreign = sorted(expected - set(state)), sorted(map(str, set(state) - expected))
        raise ValueError(
            f"This is no state of {name}: keys missing {missing}, keys not known {foreign}; "
            "resume with the controller that saved it."
        )
    if state["controller"] != name:
        raise ValueError(f"This is the state of {state['controller']}, not of {name}; resume with that controller.")
    for key in sorted(expected - {"controller"}):
        value = state[key]
        if not is_finite(value):
            raise ValueError(f"The state of {name} has {key} = {value!r}, not a finite number; use another checkpoint.")
