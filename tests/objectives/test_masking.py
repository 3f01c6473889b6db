# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_ext.objectives import global_moments, masked_mean, masked_sum, whiten

NAN, INF = float("nan"), float("inf")


def test_sum_and_mean_by_hand():
    values = torch.tensor([[1.0, NAN, 4.0], [-INF, 6.0, INF], [NAN, NAN, NAN]])
    mask = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    assert masked_sum(values, mask).item() == 11.0
    assert masked_sum(values, mask, dim=1).tolist() == [5.0, 6.0, 0.0]
    assert masked_mean(values, mask, dim=1).tolist() == [2.5, 6.0, 0.0]
    assert masked_mean(values, mask, dim=0).tolist() == [1.0, 6.0, 4.0]
    assert masked_mean(values, mask).item() == pytest.approx(11 / 3)
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_any_kind_of_mask_gives_the_same(dtype):
    values = torch.tensor([[1.0, 2.0, 4.0]])
    mask = torch.tensor([[1, 0, 1]]).to(dtype)
    assert masked_mean(values, mask).item() == 2.5
    assert whiten(values, mask).tolist()[0] == pytest.approx([-1.0, 0.0, 1.0])


def test_a_mask_that_broadcasts_is_counted_once_per_value():
    assert masked_mean(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([1, 0])).item() == 2.0


def test_half_precision_is_summed_in_float32():
    total = masked_sum(torch.ones(1, 1000, dtype=torch.bfloat16), torch.ones(1, 1000))
    assert total.dtype == torch.float32 and total.item() == 1000.0
    assert masked_mean(torch.tensor([True, False]), torch.ones(2)).item() == 0.5


def test_nothing_outside_the_mask_reaches_a_gradient():
    values = torch.tensor([[1.0, NAN, -INF]], requires_grad=True)
    masked_mean(values, torch.tensor([[True, False, False]])).backward()
    assert values.grad is not None and values.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_moments_by_hand():
    values = torch.tensor([[1.0, NAN, 3.0], [8.0, INF, NAN]])
    mask = torch.tensor([[True, False, True], [True, False, False]])
    mean, var, count = global_moments(values, mask)
    assert (mean.item(), count.item()) == (4.0, 3.0)
    assert var.item() == pytest.approx(26 / 3)
    assert mean.dim() == var.dim() == count.dim() == 0
    assert [moment.item() for moment in global_moments(values, torch.zeros_like(mask))] == [0.0, 0.0, 0.0]
    assert [moment.item() for moment in global_moments(values[:, :1], mask[:, :1] & ~mask[:, 2:])] == [8.0, 0.0, 1.0]


def test_moments_are_constants_to_a_gradient():
    # (1, 3) has mean 2 and variance 1: constant moments leave the gradient of 5 x / std at 5.
    values, mask = torch.tensor([[1.0, NAN, 3.0]], requires_grad=True), torch.tensor([[1, 0, 1]])
    assert not any(moment.requires_grad for moment in global_moments(values, mask))
    (5 * whiten(values, mask)).sum().backward()
    assert values.grad is not None and values.grad.tolist()[0] == pytest.approx([5.0, 0.0, 5.0])


def test_variance_survives_a_large_mean():
    # E[x^2] - E[x]^2 in float32 gives 0 or 16 here.
    _, var, _ = global_moments(torch.tensor([[10_000.0, 10_001.0, 10_002.0]]), torch.ones(1, 3))
    assert var.item() == pytest.approx(2 / 3, rel=1e-4)


def on_two_processes(function, values, mask):
    """Runs `function(values, mask, reduce)` on each row as if on its own process; replays until all sums are known."""
    sums: list[torch.Tensor] = []
    while True:
        calls: list[list[torch.Tensor]] = []
        results = []
        for row in range(2):
            mine: list[torch.Tensor] = []

            def reduce(tensor, mine=mine):
                mine.append(tensor.clone())
                return sums[len(mine) - 1] if len(mine) <= len(sums) else tensor

            results.append(function(values[row : row + 1], mask[row : row + 1], reduce))
            calls.append(mine)
        assert len(calls[0]) == len(calls[1]), "one process would wait for ever"
        if len(sums) == len(calls[0]):
            return results
        sums.append(calls[0][len(sums)] + calls[1][len(sums)])


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("second_mask", [[1, 0, 1, 1], [0, 0, 0, 0]])
def test_two_processes_whiten_like_one(shift_mean, second_mask):
    values = torch.tensor([[1.0, -2.0, 0.5, NAN], [10.0, INF, 30.0, -7.0]])
    mask = torch.tensor([[1, 1, 1, 0], second_mask])
    together = whiten(values, mask, shift_mean=shift_mean)
    apart = on_two_processes(lambda v, m, r: whiten(v, m, shift_mean=shift_mean, reduce=r), values, mask)
    torch.testing.assert_close(torch.cat(apart), together)


def test_two_processes_have_the_moments_of_one():
    values = torch.tensor([[1.0, -2.0, 0.5, 3.0], [10.0, 20.0, 30.0, -7.0]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    for moments in on_two_processes(global_moments, values, mask):
        torch.testing.assert_close(torch.stack(moments), torch.stack(global_moments(values, mask)))


def test_detail_18_rewards_keep_their_mean_and_advantages_do_not():
    # Mean 4, variance 4: lm-human-preferences gives (x - 4) / 2, and + 4 without shift_mean; x / 2 would be 1 and 3.
    values, mask = torch.tensor([[2.0, 6.0, NAN]]), torch.tensor([[1, 1, 0]])
    assert whiten(values, mask).tolist()[0] == pytest.approx([-1.0, 1.0, 0.0])
    assert whiten(values, mask, shift_mean=False).tolist()[0] == pytest.approx([3.0, 5.0, 0.0])


def test_equal_values_and_empty_masks_whiten_to_finite_numbers():
    values = torch.full((2, 3), 5.0)
    assert whiten(values, torch.ones(2, 3)).tolist() == [[0.0] * 3] * 2
    assert whiten(values, torch.ones(2, 3), shift_mean=False).tolist() == [[5.0] * 3] * 2
    assert whiten(values * NAN, torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6),
    st.integers(0, 3),
    st.sampled_from([NAN, INF, 9e9]),
)
def test_padding_changes_nothing(row, padding, junk):
    values, mask = torch.tensor([row]), torch.ones(1, len(row))
    padded = torch.nn.functional.pad(values, (padding, padding), value=junk)
    padded_mask = torch.nn.functional.pad(mask, (padding, padding))
    torch.testing.assert_close(masked_mean(padded, padded_mask), masked_mean(values, mask))
    inside = whiten(padded, padded_mask)[:, padding : padding + len(row)]
    # With (nearly) equal values only the rounding of the mean is left to be scaled; nothing to compare then.
    _, var, _ = global_moments(values, mask)
    if var > 1e-3:
        torch.testing.assert_close(inside, whiten(values, mask), rtol=1e-2, atol=1e-3)
    assert whiten(padded, padded_mask).sum().isfinite()
