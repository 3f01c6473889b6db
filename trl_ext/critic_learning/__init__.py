# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How a critic learns apart from the policy: passes of its own over a rollout, and pretraining."""

from .held_out import explained_on_held_out
from .learner import CriticLearner, CriticOptions
from .pretraining import REPORT, CriticPretraining, PretrainingOptions

__all__ = [
    "REPORT",
    "CriticLearner",
    "CriticOptions",
    "CriticPretraining",
    "PretrainingOptions",
    "explained_on_held_out",
]
