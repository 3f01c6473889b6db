# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""distinct-n and self-BLEU against values worked by hand."""

import math

import numpy as np
import pytest

from trl_ext.evaluation.diversity import leave_one_out_distinct_n, self_bleu_scores, tokenize
from trl_ext.evaluation.measures import diversity_measures
from trl_ext.text.ngrams import distinct_n


def corpus(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


def test_distinct_n_by_hand():
    texts = corpus("a b a b", "a b")
    assert distinct_n(texts, 1) == pytest.approx(2 / 6)
    # ab, ba, ab and ab: four bigrams, none across the two texts (that would be a second "b a").
    assert distinct_n(texts, 2) == pytest.approx(2 / 4)
    assert distinct_n(texts, 4) == 1.0
    assert math.isnan(distinct_n(texts, 5))


def test_leave_one_out_is_distinct_n_of_the_rest():
    texts = corpus("a b a", "b c", "d d", "a")
    for n in (1, 2):
        expected = [distinct_n(texts[:i] + texts[i + 1 :], n) for i in range(len(texts))]
        assert leave_one_out_distinct_n(texts, n) == pytest.approx(expected)


def test_self_bleu_by_hand():
    long, short = self_bleu_scores(corpus("the cat sat on the mat", "the cat sat"))
    # Precisions 3/6 ("the" counts once), 2/5, 1/4 and, smoothed, 0.1/3; longer than its reference: no penalty.
    assert long == pytest.approx((3 / 6 * 2 / 5 * 1 / 4 * 0.1 / 3) ** 0.25) == pytest.approx(0.2020514)
    # Precisions 1, 1, 1 and, smoothed, 0.1/1; half as long as its reference: exp(1 - 6/3).
    assert short == pytest.approx(math.exp(-1) * 0.1**0.25) == pytest.approx(0.2068740, rel=1e-4)


def test_self_bleu_clips_by_the_largest_count_in_any_other_text():
    three, one, two = self_bleu_scores(corpus("a a a", "a", "a a b"))
    assert three == pytest.approx((2 / 3 * 1 / 2 * 0.1 * 0.1) ** 0.25)
    assert one == pytest.approx(math.exp(1 - 3 / 1) * (1 * 0.1 * 0.1 * 0.1) ** 0.25)
    assert two == pytest.approx((2 / 3 * 1 / 2 * 0.1 * 0.1) ** 0.25)


def test_self_bleu_limits():
    assert self_bleu_scores(corpus("a b c d e", "a b c d e", "a b c d e")) == pytest.approx([1.0] * 3)
    assert self_bleu_scores(corpus("a b c d", "e f g h")) == [0.0, 0.0]
    assert self_bleu_scores(corpus("a b")) == []


def test_closest_reference_length_is_the_shorter_on_a_tie():
    # Lengths 2 and 4 are equally close to 3: with 2 there is no penalty.
    score = self_bleu_scores(corpus("a b c", "a b", "a b c d"))[0]
    assert score == pytest.approx((1 * 1 * 1 * 0.1) ** 0.25)


def test_tokenization():
    assert tokenize("Das ist  gut.\n") == ["Das", "ist", "gut."]
    assert tokenize("今天 天气", "characters") == ["今", "天", "天", "气"]
    with pytest.raises(ValueError, match="'bytes'"):
        tokenize("a", "bytes")


def test_empty_completions_do_not_change_diversity():
    full = diversity_measures(["a b c", "a b d e", "f"])
    with_empty = diversity_measures(["a b c", "", "a b d e", "f", " "])
    for name, measure in full.items():
        other = with_empty[name]
        assert other.value(np.arange(5)) == pytest.approx(measure.value(np.arange(3)))
    assert math.isnan(diversity_measures(["a", "", ""])["self_bleu"].value(np.arange(3)))
