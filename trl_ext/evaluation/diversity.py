# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Diversity of a set of completions: distinct-n and self-BLEU."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from trl_ext.text.ngrams import distinct_n, ngrams

_CITATION = """
@inproceedings{li2016diversity, title={A Diversity-Promoting Objective Function for Neural Conversation Models},
  author={Li, Jiwei and Galley, Michel and Brockett, Chris and Gao, Jianfeng and Dolan, Bill},
  booktitle={NAACL}, year={2016}}
@inproceedings{zhu2018texygen, title={Texygen: A Benchmarking Platform for Text Generation Models},
  author={Zhu, Yaoming and others}, booktitle={SIGIR}, year={2018}}
"""

# "Smoothing 1" of Chen & Cherry (2014), as in Texygen: an n-gram order without a match counts as 0.1 matches.
_SMOOTHING = 0.1

Tokens = Sequence[str]


def tokenize(text: str, tokenization: str = "words") -> list[str]:
    """Return the words (split at white space) or characters (without white space) of `text`.

    Raises:
        ValueError: If `tokenization` is neither "words" nor "characters".
    """
    if tokenization == "words":
        return text.split()
    if tokenization == "characters":
        return list("".join(text.split()))
    raise ValueError(f'`tokenization` is {tokenization!r}; use "words" or "characters".')


def leave_one_out_distinct_n(corpus: Sequence[Tokens], n: int) -> list[float]:
    """Return distinct-n of the corpus without its i-th member, for every i; NaN where nothing remains."""
    counts = Counter(gram for tokens in corpus for gram in ngrams(tokens, n))
    types, total, values = len(counts), counts.total(), []
    for tokens in corpus:
        own = Counter(ngrams(tokens, n))
        lost = sum(counts[gram] == count for gram, count in own.items())
        rest = total - own.total()
        values.append((types - lost) / rest if rest else math.nan)
    return values


def self_bleu_scores(corpus: Sequence[Tokens], max_n: int = 4) -> list[float]:
    """Return the BLEU of every member against all others (clipped precisions, brevity penalty, smoothing 1).

    Exact, without sampling references: the clipping count of an n-gram is its largest count in any other member, and
    the two largest counts over the corpus are enough to know it for every member.

    Args:
        corpus: Tokens of every completion, none of them empty.
        max_n: Largest n-gram, equally weighted.

    Returns:
        One score in [0, 1] each; an empty list if there are fewer than two members.
    """
    if len(corpus) < 2:
        return []
    log_precisions = [0.0] * len(corpus)
    for n in range(1, max_n + 1):
        counters = [Counter(ngrams(tokens, n)) for tokens in corpus]
        largest = _two_largest(counters)
        for i, counter in enumerate(counters):
            matches = sum(min(count, _largest_elsewhere(largest[gram], i)) for gram, count in counter.items())
            if n == 1 and matches == 0:
                log_precisions[i] = -math.inf
            log_precisions[i] += math.log((matches or _SMOOTHING) / max(1, counter.total())) / max_n
    lengths = Counter(len(tokens) for tokens in corpus)
    return [
        math.exp(log_precision + _log_brevity_penalty(len(tokens), lengths))
        for tokens, log_precision in zip(corpus, log_precisions, strict=True)
    ]


def _two_largest(counters: list[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Return for every n-gram its largest count in a member, that member's index, and the second largest count."""
    largest: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, counter in enumerate(counters):
        for gram, count in counter.items():
            first, owner, second = largest.get(gram, (0, -1, 0))
            largest[gram] = (count, i, first) if count > first else (first, owner, max(second, count))
    return largest


def _largest_elsewhere(entry: tuple[int, int, int], i: int) -> int:
    first, owner, second = entry
    return second if owner == i else first


def _log_brevity_penalty(length: int, lengths: Counter[int]) -> float:
    """Return `min(0, 1 - r / length)`; r is the length closest to `length` among the others, the shorter on a tie."""
    others = (other for other, count in lengths.items() if count > (other == length))
    closest = min(others, key=lambda other: (abs(other - length), other))
    return min(0.0, 1.0 - closest / length)


class Diversity(evaluate.Metric):
    """distinct-n and self-BLEU of a set of completions.

    distinct-n (Li et al. 2016): different n-grams divided by all n-grams, pooled over the completions; n-grams never
    cross from one completion into the next. self-BLEU (Zhu et al. 2018, Texygen): the mean BLEU-4 of each completion
    against all the others; 1 means that all completions are alike.

    Both depend on how much text there is: distinct-n falls with the number of words, self-BLEU rises with the number of
    completions. Compare only equal numbers of completions, and look at the mean length too: a model that says less has
    a higher distinct-n. Empty completions are left out and counted.

    Args:
        predictions (`list[str]`): Completions.
        max_n (`int`, defaults to 2): Largest n of distinct-n.
        tokenization (`str`, defaults to "words"): "words" splits at white space; "characters" takes every character but
            white space, for languages written without spaces.

    Returns:
        distinct_1, distinct_2, ... (`float`): Up to `max_n`; NaN if there is no n-gram of that length.
        self_bleu (`float`): NaN with fewer than two completions that are not empty.
        empty_fraction (`float`): Fraction of completions without a word.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string")})
        return evaluate.MetricInfo(description=str(type(self).__doc__), citation=_CITATION, features=features)

    def _compute(self, predictions: list[str], max_n: int = 2, tokenization: str = "words") -> dict[str, Any]:
        corpus = [tokens for text in predictions if (tokens := tokenize(text, tokenization))]
        bleus = self_bleu_scores(corpus)
        return {f"distinct_{n}": distinct_n(corpus, n) for n in range(1, max_n + 1)} | {
            "self_bleu": sum(bleus) / len(bleus) if bleus else math.nan,
            "empty_fraction": 1 - len(corpus) / len(predictions),
        }
