# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The explained variance by position, against numbers worked out by hand, and pooled over batches."""

import pytest
import torch

from trl_ext.objectives import explained_variance
from trl_ext.objectives.explained import explained_at, explained_in_ranges, explained_overall, pooled, position_moments


def test_each_range_is_explained_by_itself():
    signs = torch.tensor([1.0, -1.0] * 10)
    returns = signs[:, None].expand(20, 6).clone()
    values = torch.zeros(20, 6)
    values[:, 1] = signs / 2  # the error is a half: 1 - 0.25
    values[:, 2:4] = signs[:, None]
    values[:, 4] = -signs  # the error is twice the return: 1 - 4
    mask = torch.ones(20, 6, dtype=torch.bool)
    mask[5:, 4:] = False
    mask[:, 5] = False
    few = explained_in_ranges(position_moments(values, returns, mask))
    assert few == {1: 0.0, 2: pytest.approx(0.75), 4: pytest.approx(1.0)}, "5 tokens are too few to tell"
    mask[:10, 4] = True
    assert explained_in_ranges(position_moments(values, returns, mask))[8] == pytest.approx(-3.0)


def test_a_range_counts_the_tokens_of_all_its_positions():
    returns = torch.tensor([[1.0, 1.0, 1.0, -1.0]] * 5)
    moments = position_moments(returns / 2, returns, torch.ones(5, 4, dtype=torch.bool))
    assert explained_in_ranges(moments) == {4: pytest.approx(0.75)}, "5 at each position, 10 at the third and fourth"


def test_moments_of_batches_of_any_width_give_the_explained_variance_of_all():
    generator = torch.Generator().manual_seed(0)
    returns = torch.randn(64, 7, generator=generator) + 3
    values = returns + 0.5 * torch.randn(64, 7, generator=generator)
    mask = torch.rand(64, 7, generator=generator) < 0.8
    mask[:32, 4:] = False
    moments = None
    for first in range(0, 64, 2):
        width = 4 if first < 32 else 7
        batch = (part[first : first + 2, :width] for part in (values, returns, mask))
        moments = pooled(moments, position_moments(*batch))
    assert explained_overall(moments) == pytest.approx(float(explained_variance(values, returns, mask)), abs=1e-5)
    for position, explained in enumerate(explained_at(moments)):
        column = (part[:, position : position + 1] for part in (values, returns, mask))
        assert explained == pytest.approx(float(explained_variance(*column)), abs=1e-5)


def test_returns_that_do_not_vary_have_nothing_to_explain():
    ones = torch.ones(12, 1)
    for level in (0.0, 0.1, 1.0, 1e6):
        assert explained_at(position_moments(0 * ones, level * ones, ones.bool())) == [0.0]
