# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Metrics, progress, sample tables and alarms of a run while it goes on."""

from .metrics import MetricBuffer
from .progress import PhaseProgress
from .reward_hacking import Alarm, RewardHackingMonitor, observe_rollout
from .run_log import RunLog, Speed
from .samples import SampleTable, log_samples
from .token_means import TokenMeans

__all__ = [
    "Alarm",
    "MetricBuffer",
    "PhaseProgress",
    "RewardHackingMonitor",
    "RunLog",
    "SampleTable",
    "Speed",
    "TokenMeans",
    "log_samples",
    "observe_rollout",
]
