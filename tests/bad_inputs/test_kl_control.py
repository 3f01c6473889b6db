# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""KL controllers: arguments that are refused."""

import math
from typing import Any

import pytest

from tests.bad_inputs.case import Case, check, table
from trl_ext.kl_control import PIDKL, AdaptiveKL, FixedKL, ScheduledKL

BY_NAME = "give every argument once, by its name."
MISSING = "missing a required argument: 'target'"
CASES = [
    Case(
        "adaptive-by-position",
        lambda: AdaptiveKL(3),
        TypeError,
        f"AdaptiveKL: too many positional arguments; {BY_NAME}",
    ),
    Case("pid-by-position", lambda: PIDKL(3.0), TypeError, f"PIDKL: too many positional arguments; {BY_NAME}"),
    Case("adaptive-without-target", lambda: AdaptiveKL(), TypeError, f"AdaptiveKL: {MISSING}; {BY_NAME}"),
    Case("pid-without-target", lambda: PIDKL(init_coef=1.0), TypeError, f"PIDKL: {MISSING}; {BY_NAME}"),
]


def bad(name: str, cls: Any, message: str, **arguments: Any) -> Case:
    error = TypeError if "no argument" in message else ValueError
    return Case(name, lambda: cls(**arguments), error, message)


ABOVE_0, AT_LEAST_0 = "it must be a finite number above 0.", "it must be a finite number of at least 0."
OUTSIDE = "outside [0.0001, 100.0]; choose it between min_coef and max_coef."
CASES += [
    bad("target-nan", AdaptiveKL, f"target is nan; {ABOVE_0}", target=math.nan),
    bad("target-inf", PIDKL, f"target is inf; {ABOVE_0}", target=math.inf),
    bad("target-text", AdaptiveKL, f"target is '3'; {ABOVE_0}", target="3"),
    bad("target-bool", PIDKL, f"target is True; {ABOVE_0}", target=True),
    bad("target-none", PIDKL, f"target is None; {ABOVE_0}", target=None),
    bad("horizon-0", AdaptiveKL, f"horizon is 0; {ABOVE_0}", target=3.0, horizon=0),
    bad("horizon-nan", AdaptiveKL, f"horizon is nan; {ABOVE_0}", target=3.0, horizon=math.nan),
    bad("clip-inf", AdaptiveKL, f"clip is inf; {ABOVE_0}", target=3.0, clip=math.inf),
    bad("init-nan", AdaptiveKL, f"init_coef is nan, {OUTSIDE}", target=3.0, init_coef=math.nan),
    bad("init-0", PIDKL, f"init_coef is 0, {OUTSIDE}", target=3.0, init_coef=0),
    bad("init-text", PIDKL, f"init_coef is '0.1', {OUTSIDE}", target=3.0, init_coef="0.1"),
    bad("gain-nan", PIDKL, f"kp is nan; {AT_LEAST_0}", target=3.0, kp=math.nan),
    bad("smoothing-text", PIDKL, "smoothing is '0.5'; it must be at least 0 and below 1.", target=3.0, smoothing="0.5"),
    bad("misspelt", AdaptiveKL, "AdaptiveKL has no argument `kl_target`: did you mean `target`?", kl_target=3.0),
    bad("fixed-text", FixedKL, f"coef is '0.1'; {AT_LEAST_0}", coef="0.1"),
    bad("fixed-inf", FixedKL, f"coef is inf; {AT_LEAST_0}", coef=math.inf),
    bad("episodes-inf", ScheduledKL, f"episodes is inf; {ABOVE_0}", start=0.1, end=0.2, episodes=math.inf),
    bad("end-none", ScheduledKL, f"end is None; {AT_LEAST_0}", start=0.1, end=None, episodes=100),
]


@table(CASES)
def test_bad_arguments(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    ("controller", "text"),
    [
        (FixedKL(0.1), "FixedKL(0.1)"),
        (AdaptiveKL(target=3.0), "AdaptiveKL(target=3.0, horizon=None, clip=0.2) at 0.2"),
        (PIDKL(target=3.0, init_coef=0.05), "PIDKL(target=3.0, kp=0.4, ki=0.1, kd=0.0) at 0.05"),
        (ScheduledKL(0.3, 0.1, 64), "ScheduledKL(0.3, 0.1, episodes=64, shape='linear') at 0.3"),
    ],
)
def test_controllers_show_themselves(controller: Any, text: str) -> None:
    assert repr(controller) == text
