# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Controllers of the KL coefficient; standard library only, so that any trainer can host them."""

from ._checks import MAX_COEF, MIN_COEF
from .adaptive import AdaptiveKL
from .fixed import FixedKL
from .pid import PIDKL
from .protocol import KLController
from .scheduled import ScheduledKL

# The default bounds of a coefficient that a controller multiplies.
COEF_BOUNDS = (MIN_COEF, MAX_COEF)

__all__ = ["COEF_BOUNDS", "AdaptiveKL", "FixedKL", "KLController", "PIDKL", "ScheduledKL"]
