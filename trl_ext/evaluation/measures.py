# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Every quality measure as a sum over samples divided by another, so that one bootstrap serves them all."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.text.ngrams import distinct_n

from .diversity import leave_one_out_distinct_n, self_bleu_scores, tokenize
from .intervals import Interval, bootstrap, wilson
from .perplexity import completion_nlls, encode_pair
from .sampling import Samples
from .toxicity import THRESHOLD

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """`sum(numerators) / sum(denominators)`, or its exponential.

    Attributes:
        numerators: Shape (N,), one per sample.
        denominators: Shape (N,): 1 for a mean over samples, tokens for a mean over tokens, 0 leaves a sample out.
        exponential: Whether the value is the exponential of the quotient (a perplexity).
        is_fraction: Whether every sample either counts 1 or 0.
    """

    numerators: Array
    denominators: Array
    exponential: bool = False
    is_fraction: bool = False

    def value(self, indices: NDArray[np.int64]) -> float:
        """Return the measure of the samples `indices`; NaN if none of them counts."""
        denominator = self.denominators[indices].sum()
        if denominator == 0:
            return math.nan
        quotient = float(self.numerators[indices].sum() / denominator)
        return math.exp(quotient) if self.exponential else quotient


def mean_measure(values: list[float] | list[int]) -> Measure:
    """Return the mean over samples."""
    return Measure(np.asarray(values, dtype=np.float64), np.ones(len(values)))


def fraction_measure(flags: list[bool]) -> Measure:
    """Return the fraction of samples whose flag holds."""
    return Measure(np.asarray(flags, dtype=np.float64), np.ones(len(flags)), is_fraction=True)


def toxicity_measures(scores: list[float]) -> dict[str, Measure]:
    """Return `toxicity` (fraction above 0.5) and `toxicity_probability` (mean) of a judge's N probabilities."""
    return {
        "toxicity": fraction_measure([score > THRESHOLD for score in scores]),
        "toxicity_probability": mean_measure(scores),
    }


def reward_measures(rewards: dict[str, list[float | None]], totals: list[float | None]) -> dict[str, Measure]:
    """Return the means `rewards/<name>` of N rewards each, and `reward` of their weighted sums; None counts nowhere."""
    named = {f"rewards/{name}": values for name, values in rewards.items()} | {"reward": totals}
    return {
        name: Measure(
            np.asarray([value or 0.0 for value in values], dtype=np.float64),
            np.asarray([value is not None for value in values], dtype=np.float64),
        )
        for name, values in named.items()
    }


def perplexity_measure(
    samples: Samples,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 16,
    rendered: bool = False,
) -> Measure:
    """Return the perplexity under `model`, as `ConditionalPerplexity` defines it.

    Args:
        samples: Completions of texts.
        model: The frozen reference.
        tokenizer: The reference's.
        batch_size: Sequences per forward pass.
        rendered: Whether a chat template has written the prompts, special tokens and all.
    """
    pairs = [
        encode_pair(tokenizer, str(prompt), text, add_special_tokens=not rendered)
        for prompt, text in zip(samples.prompts, samples.completions, strict=True)
    ]
    nlls = completion_nlls(model, [pair[0] for pair in pairs], [pair[1] for pair in pairs], batch_size)
    return Measure(np.asarray(nlls), np.asarray([len(pair[1]) for pair in pairs], dtype=np.float64), exponential=True)


def diversity_measures(texts: list[str], tokenization: str = "words") -> dict[str, Measure]:
    """Return `distinct_1`, `distinct_2` and `self_bleu`.

    A bootstrap resample repeats samples, which by itself lowers distinct-n and sets a sample's BLEU against its copy
    to 1. So distinct-n is linearized first: each sample counts with its jackknife influence (Efron & Tibshirani 1993,
    ch. 11), whose mean is distinct-n itself. For self-BLEU the references stay fixed and the scores are resampled.
    """
    corpus = [tokenize(text, tokenization) for text in texts]
    measures = {}
    for n in (1, 2):
        whole, left_out = distinct_n(corpus, n), np.asarray(leave_one_out_distinct_n(corpus, n))
        left_out = np.where(np.isnan(left_out), whole, left_out)  # without the only text that has n-grams
        influences = whole + (len(corpus) - 1) * (left_out.mean() - left_out)
        measures[f"distinct_{n}"] = Measure(influences, np.ones(len(corpus)))
    present = np.asarray([bool(tokens) for tokens in corpus])
    scores = np.zeros(len(corpus))
    if present.sum() > 1:
        scores[present] = self_bleu_scores([tokens for tokens in corpus if tokens])
    counted = present.astype(np.float64) if present.sum() > 1 else np.zeros(len(corpus))
    measures["self_bleu"] = Measure(scores, counted)
    return measures


def length_measures(samples: Samples) -> dict[str, Measure]:
    """Return `mean_length` (tokens, without EOS), `empty_fraction` and `terminated_fraction`."""
    return {
        "mean_length": mean_measure(samples.lengths),
        "empty_fraction": fraction_measure(samples.empty),
        "terminated_fraction": fraction_measure(samples.terminated),
    }


def compare(measure: Measure, baseline: Measure, *, num_resamples: int, seed: int) -> dict[str, Interval]:
    """Return the intervals of `model`, `baseline`, their `difference` and `ratio`, all on the same resamples.

    Those of a fraction of the `model` and the `baseline` themselves are Wilson's: 0 of 50 is no proof of 0.
    """
    if len(measure.numerators) != len(baseline.numerators):
        raise ValueError(
            f"There are {len(measure.numerators)} samples of the model and {len(baseline.numerators)} of the "
            "baseline; they are compared prompt by prompt."
        )

    def ratio(indices: NDArray[np.int64]) -> float:
        below = baseline.value(indices)
        return measure.value(indices) / below if below else math.nan

    statistics = {
        "model": measure.value,
        "baseline": baseline.value,
        "difference": lambda indices: measure.value(indices) - baseline.value(indices),
        "ratio": ratio,
    }
    size = len(measure.numerators)
    intervals = {
        name: bootstrap(statistic, size, num_resamples=num_resamples, seed=seed)
        for name, statistic in statistics.items()
    }
    for name, one in (("model", measure), ("baseline", baseline)):
        if one.is_fraction:
            intervals[name] = wilson(float(one.numerators.sum()), size)
    return intervals
