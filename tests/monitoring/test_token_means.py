# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Means over tokens, however a minibatch is cut."""

import pytest
import torch

from trl_ext.monitoring import TokenMeans

LOSS = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [0.0, 0.0, 5.0], [9.0, 9.0, 9.0]])
RATIO = torch.tensor([[1.0, 0.5, 99.0], [2.5, 99.0, 99.0], [1.5, 0.1, 1.0], [99.0, 99.0, 99.0]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool()
# Six tokens: (1 + 2 + 4 + 0 + 0 + 5) / 6. The mean of the four rows' means would be (1.5 + 4 + 5/3 + 0) / 4.
EXPECTED = {"loss": 2.0, "ratio/max": 2.5}


def one_process(tensor: torch.Tensor, how: str) -> torch.Tensor:
    return tensor


def means(batches: list[list[int]], mask: torch.Tensor = MASK, reduce=one_process) -> dict[str, float]:
    """The means after adding the rows in these micro-batches."""
    adder = TokenMeans()
    for rows in batches:
        adder.add({"loss": LOSS[rows], "ratio/max": RATIO[rows]}, mask[rows])
    return adder.take(reduce)


@pytest.mark.parametrize(
    "batches", [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[3], [2], [1], [0]], [[0, 1, 2], [3]], [[3, 0], [1, 2]]]
)
def test_the_way_a_minibatch_is_cut_does_not_matter(batches):
    assert means(batches) == pytest.approx(EXPECTED)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_any_kind_of_mask(dtype):
    assert means([[0, 1], [2, 3]], MASK.to(dtype)) == pytest.approx(EXPECTED)


def test_what_lies_outside_the_mask_is_never_read():
    adder = TokenMeans()
    values = torch.where(MASK, LOSS, torch.nan)
    adder.add({"loss": values, "loss/max": values}, MASK)
    assert adder.take(one_process) == {"loss": 2.0, "loss/max": 5.0}


def test_an_empty_mask_gives_a_mean_of_zero():
    assert means([[0, 1, 2, 3]], torch.zeros_like(MASK))["loss"] == 0.0


def test_taking_starts_anew():
    adder = TokenMeans()
    adder.add({"loss": LOSS, "loss/max": LOSS}, MASK)
    adder.take(one_process)
    adder.add({"loss": LOSS[2:3, :2], "loss/max": LOSS[2:3, :2]}, MASK[2:3, :2])
    assert adder.take(one_process) == {"loss": 0.0, "loss/max": 0.0}


def test_the_largest_value_may_be_negative():
    adder = TokenMeans()
    for row in (0, 1):
        adder.add({"advantage/max": -LOSS[row : row + 1]}, MASK[row : row + 1])
    assert adder.take(one_process)["advantage/max"] == -1.0


def test_sums_and_counts_are_added_over_processes_and_the_largest_is_not():
    """A second process with twice the tokens, a sum of 24 on top of 12, and a largest ratio of 7."""
    asked: list[str] = []

    def reduce(tensor: torch.Tensor, how: str) -> torch.Tensor:
        asked.append(how)
        other = {"sum": {6.0: 12.0, 12.0: 24.0}, "max": {2.5: 7.0}}[how]
        theirs = torch.tensor([other[round(float(v), 4)] for v in tensor.flatten()]).view(tensor.shape)
        return tensor + theirs if how == "sum" else torch.maximum(tensor, theirs)

    assert means([[0, 1], [2, 3]], reduce=reduce) == pytest.approx({"loss": 36 / 18, "ratio/max": 7.0})
    assert sorted(set(asked)) == ["max", "sum"]


def test_no_graph_is_kept():
    adder = TokenMeans()
    adder.add({"loss": LOSS.clone().requires_grad_(), "loss/max": LOSS.clone().requires_grad_()}, MASK)

    def reduce(tensor: torch.Tensor, how: str) -> torch.Tensor:
        assert not tensor.requires_grad
        return tensor

    adder.take(reduce)
