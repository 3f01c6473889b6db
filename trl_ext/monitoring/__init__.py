# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a person watches: metrics, sample tables, progress and the report of a run."""

from trl_ext.monitoring.metrics import MetricBuffer
from trl_ext.monitoring.progress import PhaseProgress
from trl_ext.monitoring.report import write_report
from trl_ext.monitoring.reward_hacking import Alarm, RewardHackingMonitor, observe_rollout
from trl_ext.monitoring.samples import SampleTable, log_samples
from trl_ext.monitoring.token_means import TokenMeans

__all__ = [
    "Alarm",
    "MetricBuffer",
    "PhaseProgress",
    "RewardHackingMonitor",
    "SampleTable",
    "TokenMeans",
    "log_samples",
    "observe_rollout",
    "write_report",
]
