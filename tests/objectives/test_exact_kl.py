# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The KL over the whole vocabulary, from the hidden states of two models."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

from trl_ext.objectives import logprobs_and_entropy
from trl_ext.objectives.exact_kl import Comparison, compare
from trl_ext.planner.footprint import Meter

N, D, V = 11, 6, 17
INF = torch.inf


def of_logits(policy: list[float], reference: list[float]) -> Comparison:
    """One state whose logits are given; the first token was chosen."""
    hidden, chosen = torch.ones(1, 1), torch.tensor([0])
    return compare(hidden, hidden, chosen, lambda h: torch.tensor([policy]), lambda h: torch.tensor([reference]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("chunk_size", [1, 4, 512])
def test_the_kl_is_that_of_torchs_own_distributions_and_the_rest_that_of_one_model(chunk_size, temperature):
    torch.manual_seed(0)
    hidden, other, targets = torch.randn(N, D), torch.randn(N, D + 1), torch.randint(V, (N,))
    head, ref_head = nn.Linear(D, V), nn.Linear(D + 1, V)
    options = {"temperature": temperature, "chunk_size": chunk_size}
    got = compare(hidden, other, targets, head, ref_head, **options)
    p, q = (Categorical(logits=h(x) / temperature) for h, x in ((head, hidden), (ref_head, other)))
    torch.testing.assert_close(got.kl, kl_divergence(p, q).detach(), rtol=1e-5, atol=1e-5)
    assert got.kl.min() > 0.01
    logps, entropy = logprobs_and_entropy(hidden, targets, head, **options)
    ref_logps, _ = logprobs_and_entropy(other, targets, ref_head, **options)
    for ours, alone in ((got.logps, logps), (got.entropy, entropy), (got.ref_logps, ref_logps)):
        assert torch.equal(ours, alone)
    assert not any(tensor.requires_grad for tensor in got)


def test_by_hand():
    # (1/2, 1/2) and (3/4, 1/4): half of ln(2/3), and half of ln 2.
    assert of_logits([0.0, 0.0], [math.log(3), 0.0]).kl.item() == pytest.approx(0.5 * math.log(4 / 3))


def test_equal_models_have_a_kl_of_exactly_zero_and_no_model_less():
    torch.manual_seed(0)
    hidden, targets, head = 10 * torch.randn(64, D), torch.randint(V, (64,)), nn.Linear(D, V)
    assert not compare(hidden, hidden, targets, head, head, chunk_size=7).kl.any()
    moved = hidden + 1e-4 * torch.randn_like(hidden)  # a KL of the size of rounding errors
    assert compare(moved, hidden, targets, head, head).kl.min() >= 0


@pytest.mark.parametrize(
    ("policy", "reference", "kl"),
    [
        pytest.param([0.0, 0.0, -INF], [0.0, 0.0, -INF], 0.0, id="ruled out by both"),
        pytest.param([0.0, 0.0, -INF], [0.0, 0.0, 0.0], math.log(3 / 2), id="ruled out by the policy"),
        pytest.param([0.0, 0.0, -200.0], [0.0, 0.0, -INF], 0.0, id="a probability that rounds to 0"),
        pytest.param([0.0, 0.0, 0.0], [0.0, 0.0, -INF], INF, id="ruled out by the reference alone"),
    ],
)
def test_impossible_tokens(policy, reference, kl):
    assert of_logits(policy, reference).kl.item() == pytest.approx(kl)


def test_a_broken_model_shows_in_its_log_probabilities():
    assert of_logits([math.nan, 0.0], [0.0, 0.0]).logps.isnan()
    assert of_logits([0.0, 0.0], [math.nan, 0.0]).ref_logps.isnan()


def test_a_batch_without_tokens():
    empty, head = torch.zeros(0, D), nn.Linear(D, V)
    got = compare(empty, empty, torch.zeros(0, dtype=torch.long), head, head)
    assert all(tensor.shape == (0,) and tensor.dtype == torch.float32 for tensor in got)


def test_float64_stays():
    head = nn.Linear(D, V, dtype=torch.float64)
    hidden = torch.randn(N, D, dtype=torch.float64)
    got = compare(hidden, hidden + 1, torch.zeros(N, dtype=torch.long), head, head, temperature=0.7)
    assert {tensor.dtype for tensor in got} == {torch.float64}


def most_logits(call) -> float:
    """The most logits alive at once, in tensors of a chunk's size; no other tensor has so many columns."""
    rows, columns = 64, 4096
    weight, hidden = torch.empty(D, columns, device="meta"), torch.empty(16 * rows, D, device="meta")
    ids = torch.empty(16 * rows, dtype=torch.long, device="meta")
    with torch.no_grad(), Meter(columns) as meter, meter.moment("it"):
        call(hidden, ids, lambda h: h @ weight, chunk_size=rows)
    return meter.peaks["it"]["logits"] / (rows * columns * 4)


def test_two_models_at_once_take_no_more_memory_than_one():
    assert most_logits(logprobs_and_entropy) == 3
    assert most_logits(lambda h, ids, head, **options: compare(h, h, ids, head, head, **options)) == 3
