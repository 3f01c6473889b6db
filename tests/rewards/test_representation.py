# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A reward shows itself as the call that makes it."""

import pytest

from tests.tiny_models import tiny_classifier, tiny_tokenizer
from trl_ext import rewards
from trl_ext.rewards import (
    PAR,
    Clipped,
    Ensemble,
    HTTPReward,
    KeywordReward,
    LengthDebiased,
    LengthReward,
    LogSigmoid,
    PreferenceReward,
    RegexReward,
    RepetitionReward,
    RunningNormalization,
    SentenceEndReward,
    SentenceReward,
    Summed,
    ToxicityReward,
    WeightedSum,
)


def brevity(completions, **columns):
    return [0.0] * len(completions)


SHOWN = [
    (ToxicityReward("org/judge", output="log_odds"), "ToxicityReward('org/judge', output='log_odds')"),
    (ToxicityReward("org/judge", toxic_label=["a", 1]), "ToxicityReward('org/judge', toxic_label=['a', 1])"),
    (PreferenceReward("org/rm"), "PreferenceReward('org/rm')"),
    (
        PreferenceReward("org/rm", scale=2.0, append_eos=False),
        "PreferenceReward('org/rm', append_eos=False, scale=2.0)",
    ),
    (HTTPReward("http://localhost:8000/score"), "HTTPReward('http://localhost:8000/score')"),
    (LengthReward(8, ignore_ids=[2, 1]), "LengthReward(low=8, ignore_ids=(1, 2))"),
    (RepetitionReward(4, unit="words"), "RepetitionReward(n=4, unit='words')"),
    (RegexReward("a+", hit=2.0), "RegexReward('a+', hit=2.0)"),
    (KeywordReward(["fool"], hit=-1.0), "KeywordReward(['fool'], hit=-1.0)"),
    (SentenceEndReward(-2.0, end=20), "SentenceEndReward(score=-2.0, end=20)"),
    (Clipped(LengthReward(3), high=1.0), "Clipped(LengthReward(low=3), high=1.0)"),
    (
        WeightedSum([brevity, LengthReward(3)], [1, 2]),
        "WeightedSum([brevity, LengthReward(low=3)], weights=[1.0, 2.0])",
    ),
    (Summed(brevity), "Summed(brevity)"),
    (SentenceReward(brevity, tiny_tokenizer()), "SentenceReward(brevity, TokenizersBackend)"),
    (LogSigmoid(brevity, scale=2.0), "LogSigmoid(brevity, scale=2.0)"),
    (PAR(brevity), "PAR(brevity)"),
    (RunningNormalization(brevity, clip=5.0), "RunningNormalization(brevity, clip=5.0)"),
    (Ensemble([brevity, brevity], "min"), "Ensemble([brevity, brevity], aggregation='min')"),
    (LengthDebiased(brevity, min_samples=9), "LengthDebiased(brevity, min_samples=9)"),
]


@pytest.mark.parametrize(("reward", "shown"), SHOWN, ids=[shown for _, shown in SHOWN])
def test_repr(reward, shown):
    assert repr(reward) == shown


def test_every_reward_of_the_package_is_among_them():
    made = {type(reward).__name__ for reward, _ in SHOWN}
    exported = {name for name in rewards.__all__ if isinstance(getattr(rewards, name), type)}
    assert exported - made == {"Combination", "RewardCheck", "RewardFunction", "RewardRunner", "Scores"}


def test_models_and_tokenizers_are_named_not_printed():
    reward = PreferenceReward(tiny_classifier(["s"]), tokenizer=tiny_tokenizer(), center=1.0)
    assert repr(reward) == "PreferenceReward(BertForSequenceClassification, tokenizer=TokenizersBackend, center=1.0)"
