# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Controllers of the KL coefficient and of other bounds; standard library only, so that any trainer can host them."""

from .adaptive import AdaptiveKL
from .constraint import Constraint, check_bounds, check_names, function_bounds, kl_bound, parse_constraints
from .fixed import FixedKL
from .log_pid import LogPID
from .pid import PIDKL
from .protocol import KLController
from .scheduled import SHAPES, ScheduledKL
from .table import CONTROLLERS, all_settings, make_controller, settings_of

__all__ = [
    "CONTROLLERS",
    "SHAPES",
    "AdaptiveKL",
    "Constraint",
    "FixedKL",
    "KLController",
    "LogPID",
    "PIDKL",
    "ScheduledKL",
    "all_settings",
    "check_bounds",
    "check_names",
    "function_bounds",
    "kl_bound",
    "make_controller",
    "parse_constraints",
    "settings_of",
]
