# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The KL over the whole vocabulary, from the hidden states of two models."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

from trl_ext.objectives import logprobs_and_entropy
from trl_ext.objectives.exact_kl import Comparison, compare, logprobs_entropy_and_kl
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


# ---- with gradients ----

OPTIONS: list[dict[str, Any]] = [
    {},
    {"recompute": False},
    {"entropy": "value"},
    {"entropy": "value", "frozen_head": True},
    {"entropy": "none", "frozen_head": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunk_size", [4, 512])
def test_gradients_are_those_of_torchs_own_distributions(chunk_size, options):
    torch.manual_seed(0)
    hidden, other, targets = torch.randn(N, D, requires_grad=True), torch.randn(N, D + 1), torch.randint(V, (N,))
    head, ref_head = nn.Linear(D, V), nn.Linear(D + 1, V)
    head.requires_grad_(not options.get("frozen_head"))
    inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    weights = [torch.linspace(-1, 2, N), torch.linspace(1, 0.5, N), torch.linspace(2, -1, N)]

    def gradients(results):
        return torch.autograd.grad(sum((r * w).sum() for r, w in zip(results, weights, strict=True)), inputs)

    p, q = (Categorical(logits=h(x) / 0.7) for h, x in ((head, hidden), (ref_head, other)))
    entropy = p.entropy() if options.get("entropy", "gradient") == "gradient" else p.entropy().detach()
    expected = gradients((p.log_prob(targets), entropy, kl_divergence(p, q)))
    got = logprobs_entropy_and_kl(
        hidden, other, targets, head, ref_head, temperature=0.7, chunk_size=chunk_size, **options
    )
    for a, b in zip(gradients(got), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    alone = logprobs_and_entropy(hidden, targets, head, temperature=0.7, chunk_size=chunk_size, **options)
    assert torch.equal(got[0], alone[0]) and torch.equal(got[1], alone[1])
    assert all(p.grad is None for p in ref_head.parameters())


@pytest.mark.parametrize("reference", [[0.0, 0.0, -INF], [0.0, 1.0, 2.0]])
def test_impossible_tokens_have_no_gradient(reference):
    logits = torch.tensor([[1.0, 0.0, -INF]], requires_grad=True)
    hidden, chosen = torch.ones(1, 1), torch.tensor([0])
    _, _, kl = logprobs_entropy_and_kl(hidden, hidden, chosen, lambda h: logits, lambda h: torch.tensor([reference]))
    (gradient,) = torch.autograd.grad(kl.sum(), logits)
    assert gradient.isfinite().all() and gradient[0, 2] == 0
    assert gradient[0, :2].abs().min() > 0.01


def test_a_micro_batch_without_tokens_takes_part_in_the_backward_pass():
    hidden, head = torch.zeros(0, D, requires_grad=True), nn.Linear(D, V)
    out = logprobs_entropy_and_kl(hidden, hidden.detach(), torch.zeros(0, dtype=torch.long), head, head)
    sum(tensor.sum() for tensor in out).backward()
    assert hidden.grad is not None


def most_logits(call, gradient: bool = False) -> float:
    """The most logits alive at once, in tensors of a chunk's size; no other tensor has so many columns."""
    rows, columns = 64, 4096
    weight, hidden = torch.empty(D, columns, device="meta"), torch.empty(16 * rows, D, device="meta")
    ids = torch.empty(16 * rows, dtype=torch.long, device="meta")
    hidden.requires_grad_(gradient)
    with torch.set_grad_enabled(gradient), Meter(columns) as meter, meter.moment("it"):
        call(hidden, ids, lambda h: h @ weight, chunk_size=rows)
    return meter.peaks["it"]["logits"] / (rows * columns * 4)


def test_two_models_at_once_take_no_more_memory_than_one():
    assert most_logits(logprobs_and_entropy) == 3
    assert most_logits(lambda h, ids, head, **options: compare(h, h, ids, head, head, **options)) == 3


def test_gradients_of_the_kl_take_as_many_logits_in_a_chunk_whatever_their_number():
    options: dict[str, Any] = {"frozen_head": True, "entropy": "value"}
    one = partial(logprobs_and_entropy, **options)
    assert most_logits(one, gradient=True) == 3
    two = partial(logprobs_entropy_and_kl, **options)
    assert most_logits(lambda h, ids, head, **sizes: two(h, h.detach(), ids, head, head, **sizes), gradient=True) <= 5
