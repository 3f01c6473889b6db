# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions in TRL's signature, their combinations, and the runner that calls them."""

from .base import RewardFunction, completion_text, prompt_text, reward_name
from .by_name import check_reward_name, reward_by_name
from .check import RewardCheck, check_reward, try_reward
from .combine import PAR, Clipped, Combination, Ensemble, LogSigmoid, RunningNormalization, Summed, WeightedSum
from .given import check_reward_models, reward_names
from .http import HTTPReward
from .length_debias import LengthDebiased
from .preference import PreferenceReward
from .rules import KeywordReward, LengthReward, RegexReward, RepetitionReward, SentenceEndReward
from .runner import RewardRunner, Scores
from .sentences import SentenceReward
from .spans import spread_spans
from .toxicity import ToxicityReward

__all__ = [
    "PAR",
    "Clipped",
    "Combination",
    "Ensemble",
    "HTTPReward",
    "KeywordReward",
    "LengthDebiased",
    "LengthReward",
    "LogSigmoid",
    "PreferenceReward",
    "RegexReward",
    "RepetitionReward",
    "RewardCheck",
    "RewardFunction",
    "RewardRunner",
    "RunningNormalization",
    "Scores",
    "SentenceEndReward",
    "SentenceReward",
    "Summed",
    "ToxicityReward",
    "WeightedSum",
    "check_reward",
    "check_reward_models",
    "check_reward_name",
    "completion_text",
    "prompt_text",
    "reward_by_name",
    "reward_name",
    "spread_spans",
    "reward_names",
    "try_reward",
]
