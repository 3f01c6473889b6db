# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""N-grams by hand."""

import math

import pytest

from trl_ext.text.ngrams import distinct_n, repetition


def test_repetition():
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)  # 123 231 312 123
    assert repetition([1, 2]) == 0.0 and repetition([7, 7, 7, 7]) == 0.5


def test_distinct_n():
    assert distinct_n([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)  # 12 21 12, 12
    assert distinct_n([["a", "b"], ["c"]], 1) == 1.0
    assert math.isnan(distinct_n([[1], []], 2))
