# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Accuracy and calibration of a reward model on pairs that it was not trained on."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trl_ext.files import without_nan
from trl_ext.rewards import PreferenceReward, completion_text

from .intervals import Interval, wilson

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Pairs of similar confidence, with the mean confidence and the accuracy."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class RewardModelReport:
    """Figures of `describe_reward_model`.

    Attributes:
        accuracy: Fraction of pairs whose chosen answer scores higher, with Wilson's interval; equal scores count half.
        reliability: Pairs by confidence, the probability sigmoid(|margin|) that the model of Bradley and Terry gives
            to the answer it prefers.
        ece: Expected calibration error, mean over pairs of |accuracy - confidence| of their bin (Guo et al. 2017).
        nll: Mean of -log sigmoid(margin), the loss that reward models are trained with; log 2 for guessing.
        margin_mean, margin_std: Of chosen minus rejected.
        margin_counts, margin_edges: Their histogram: H counts and H + 1 edges.
        length_correlation: Pearson's, of score and length, over all answers.
        margin_length_correlation: The same of margin and difference in length, in which the prompt plays no part.
        accuracy_by_length: Accuracy where the chosen answer is "longer", "shorter" or equally long ("equal").
        chosen_longer: Fraction of pairs whose chosen answer is longer; always preferring the longer one is right as
            often.
    """

    pairs: int
    accuracy: Interval
    reliability: list[Bin]
    ece: float
    nll: float
    margin_mean: float
    margin_std: float
    margin_counts: list[int]
    margin_edges: list[float]
    length_correlation: float
    margin_length_correlation: float
    accuracy_by_length: dict[str, Interval]
    chosen_longer: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, which has no NaN: None instead."""
        return without_nan(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RewardModelReport":
        """Return what `as_dict` was made of; other entries are passed over."""
        own = _with_nan({field.name: values[field.name] for field in fields(cls)})
        own["accuracy"] = Interval(**own["accuracy"])
        own["accuracy_by_length"] = {name: Interval(**rate) for name, rate in own["accuracy_by_length"].items()}
        own["reliability"] = [Bin(**one) for one in own["reliability"]]
        return cls(**own)


def evaluate_reward_models(
    models: Sequence[PreferenceReward],
    pairs: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[RewardModelReport, list[RewardModelReport]]:
    """Measure an ensemble of reward models on preference pairs.

    Args:
        models: One reward model or several.
        pairs: N pairs with `chosen`, `rejected` and perhaps `prompt`, texts or conversations.
        tokenizer: Counts the tokens of the answers; the first model's by default.

    Returns:
        The report on the mean of the models' scores, and the report on each model.
    """
    empty: Any = "" if isinstance(pairs[0]["chosen"], str) else []
    prompts = [pair.get("prompt") or empty for pair in pairs]
    sides = [[pair[side] for pair in pairs] for side in ("chosen", "rejected")]
    scores = [[model.scores(prompts, answers) for model in models] for answers in sides]
    tokenize = tokenizer or models[0].scorer.tokenizer
    texts = [[completion_text(answer) for answer in answers] for answers in sides]
    lengths = [[len(ids) for ids in tokenize(side, add_special_tokens=False)["input_ids"]] for side in texts]
    means = [[sum(row) / len(row) for row in zip(*side, strict=True)] for side in scores]
    return (
        describe_reward_model(*means, *lengths),
        [describe_reward_model(*both, *lengths) for both in zip(*scores, strict=True)],
    )


def describe_reward_model(
    chosen: list[float],
    rejected: list[float],
    chosen_lengths: list[int],
    rejected_lengths: list[int],
    *,
    bins: int = 10,
) -> RewardModelReport:
    """Measure a reward model on N pairs.

    Args:
        chosen, rejected: Its scores, shape (N,).
        chosen_lengths, rejected_lengths: Tokens of the answers, shape (N,).
        bins: Of the reliability data, equally wide between confidence 1/2 and 1.

    Raises:
        ValueError: no pair, lists of different lengths, or a score that is not finite.
    """
    better, worse = np.asarray(chosen, dtype=float), np.asarray(rejected, dtype=float)
    lengths, worse_lengths = np.asarray(chosen_lengths, dtype=float), np.asarray(rejected_lengths, dtype=float)
    sizes = {len(values) for values in (better, worse, lengths, worse_lengths)}
    if len(sizes) != 1 or sizes == {0} or not np.isfinite([*better, *worse]).all():
        raise ValueError(f"Got lists of {sorted(sizes)} scores and lengths; give one finite score and length a side.")
    margins, longer = better - worse, lengths - worse_lengths
    right = np.where(margins == 0, 0.5, (margins > 0).astype(float))
    reliability, ece = _reliability(np.abs(margins), right, bins)
    counts, edges = np.histogram(margins, bins=30)
    groups = {"longer": longer > 0, "shorter": longer < 0, "equal": longer == 0}
    return RewardModelReport(
        pairs=len(margins),
        accuracy=wilson(right.sum(), len(right)),
        reliability=reliability,
        ece=ece,
        nll=float(np.logaddexp(0, -margins).mean()),
        margin_mean=float(margins.mean()),
        margin_std=float(margins.std()),
        margin_counts=counts.tolist(),
        margin_edges=edges.tolist(),
        length_correlation=_correlation(np.concatenate([better, worse]), np.concatenate([lengths, worse_lengths])),
        margin_length_correlation=_correlation(margins, longer),
        accuracy_by_length={name: wilson(right[where].sum(), int(where.sum())) for name, where in groups.items()},
        chosen_longer=float((longer > 0).mean()),
    )


def _reliability(sureness: Array, right: Array, bins: int) -> tuple[list[Bin], float]:
    confidence = 1 / (1 + np.exp(-sureness))
    places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    found = [
        Bin(float(confidence[places == i].mean()), float(right[places == i].mean()), int((places == i).sum()))
        for i in np.unique(places)
    ]
    return found, sum(one.count * abs(one.accuracy - one.confidence) for one in found) / len(right)


def _correlation(one: Array, other: Array) -> float:
    return statistics.correlation(one.tolist(), other.tolist()) if one.std() * other.std() > 0 else math.nan


def _with_nan(value: Any) -> Any:
    """Return `value` with NaN for None, at any depth."""
    if isinstance(value, dict):
        return {key: _with_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_nan(part) for part in value]
    return math.nan if value is None else value
