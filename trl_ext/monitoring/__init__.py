# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Metrics, progress, sample tables and alarms of a run while it goes on.

Names are imported when they are first used: the glossary needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .metrics import MetricBuffer
    from .progress import PhaseProgress
    from .reward_hacking import Alarm, RewardHackingMonitor, observe_rollout
    from .run_log import RunLog, Speed
    from .samples import SampleTable, log_samples
    from .token_means import TokenMeans

_HOMES = {
    "Alarm": "reward_hacking",
    "MetricBuffer": "metrics",
    "PhaseProgress": "progress",
    "RewardHackingMonitor": "reward_hacking",
    "RunLog": "run_log",
    "SampleTable": "samples",
    "Speed": "run_log",
    "TokenMeans": "token_means",
    "log_samples": "samples",
    "observe_rollout": "reward_hacking",
}
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

if not TYPE_CHECKING:  # a type checker then reports a name that is misspelt

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f".{_HOMES[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
