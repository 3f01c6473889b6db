# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Log-probabilities in chunks: the same numbers and gradients as in one piece, with few logits alive."""

import math

import pytest
import torch
from torch import nn

from trl_ext.objectives import logprobs_and_entropy

N, D, V = 11, 6, 17


def parts(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    head = nn.Linear(D, V, dtype=dtype)
    return hidden, torch.randint(V, (N,)), head


class Spy(nn.Module):
    """Remembers how many rows the head was given in each call."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head
        self.rows: list[int] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return self.head(hidden)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("chunk_size", [1, 4, 11, 512])
def test_values_and_gradients_are_those_of_torchs_own_distribution(chunk_size, temperature):
    hidden, targets, head = parts()
    weights = torch.linspace(-1, 2, N)

    def gradients(logps, entropy):
        inputs = [hidden, head.weight, head.bias]
        return torch.autograd.grad((logps * weights).sum() + (entropy * weights.flip(0)).sum(), inputs)

    distribution = torch.distributions.Categorical(logits=head(hidden) / temperature)
    expected = distribution.log_prob(targets), distribution.entropy()
    got = logprobs_and_entropy(hidden, targets, head, temperature=temperature, chunk_size=chunk_size)
    for a, b in zip(got + gradients(*got), expected + gradients(*expected), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_cross_entropy_agrees():
    hidden, targets, head = parts()
    logps, _ = logprobs_and_entropy(hidden, targets, head, chunk_size=3)
    assert torch.allclose(-logps, nn.functional.cross_entropy(head(hidden), targets, reduction="none"), atol=1e-6)


def test_entropy_by_hand():
    logits = torch.tensor([[0.0] * 4, [0.0, 0.0, -torch.inf, -torch.inf], [200.0, 0.0, 0.0, 0.0]])
    logps, entropy = logprobs_and_entropy(
        torch.eye(3), torch.tensor([1, 0, 0]), lambda h: h @ logits.nan_to_num(neginf=-1e4)
    )
    assert entropy.tolist() == pytest.approx([math.log(4), math.log(2), 0.0])
    assert logps.tolist() == pytest.approx([-math.log(4), -math.log(2), 0.0])


def test_tokens_that_are_ruled_out_do_not_make_the_entropy_nan():
    logits = torch.tensor([[1.0, 1.0, -torch.inf]], requires_grad=True)
    _, entropy = logprobs_and_entropy(torch.ones(1, 1), torch.tensor([0]), lambda h: logits)
    assert entropy.item() == pytest.approx(math.log(2))


def test_a_low_temperature_makes_the_likeliest_token_certain():
    hidden, _, head = parts()
    likeliest = head(hidden).argmax(-1)
    logps, entropy = logprobs_and_entropy(hidden, likeliest, head, temperature=1e-3)
    assert logps.min() > -1e-3 and entropy.max() < 1e-2


def test_no_call_holds_more_logits_than_the_chunk_size():
    hidden, targets, head = parts()
    spy = Spy(head)
    logps, entropy = logprobs_and_entropy(hidden, targets, spy, chunk_size=4)
    assert spy.rows == [4, 4, 3]
    (logps.sum() + entropy.sum()).backward()
    assert sorted(spy.rows) == [3, 3, 4, 4, 4, 4], "each chunk once more in the backward pass"


def test_no_logits_are_kept_for_the_backward_pass():
    hidden, targets, head = parts()
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape[-1])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs_and_entropy(hidden, targets, head, chunk_size=4)
    assert kept and V not in kept


def test_under_a_frozen_head_only_hidden_states_are_kept():
    hidden, targets, head = parts()
    head.requires_grad_(False)
    logps, _ = logprobs_and_entropy(hidden, targets, head, chunk_size=4, entropy="value", frozen_head=True)
    chunks = [chunk for chunk, _ in logps.grad_fn.next_functions]
    assert [[t.shape for t in chunk.saved_tensors] for chunk in chunks] == [[(4, D)], [(4, D)], [(3, D)]]


def test_nothing_is_computed_twice_without_a_gradient_or_in_one_chunk():
    hidden, targets, head = parts()
    spy = Spy(head)
    with torch.no_grad():
        logprobs_and_entropy(hidden, targets, spy, chunk_size=4)
    assert spy.rows == [4, 4, 3]
    logprobs_and_entropy(hidden, targets, spy, chunk_size=N)[0].sum().backward()
    assert spy.rows == [4, 4, 3, N]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("chunk_size", [4, 512])
def test_under_a_frozen_head_gradients_are_the_same_and_each_chunk_is_computed_once(chunk_size, mixed):
    hidden, targets, head = parts()
    head.requires_grad_(False)
    spy, weights = Spy(head), torch.linspace(-1, 2, N)

    def run(**options):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = logprobs_and_entropy(hidden, targets, spy, chunk_size=chunk_size, temperature=0.7, **options)
        return *out, torch.autograd.grad((out[0] * weights).sum(), hidden)[0]

    expected = run()
    spy.rows.clear()
    got = run(entropy="value", frozen_head=True)
    assert sum(spy.rows) == N
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-2 if mixed else 1e-6)  # bfloat16: 1/128


def test_a_frozen_head_keeps_its_entropy_bonus():
    hidden, targets, head = parts()
    head.requires_grad_(False)
    gradients = [
        torch.autograd.grad(logprobs_and_entropy(hidden, targets, head, frozen_head=frozen)[1].sum(), hidden)[0]
        for frozen in (False, True)
    ]
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.parametrize("frozen_head", [False, True])
@pytest.mark.parametrize("chunk_size", [4, 512])
def test_entropies_without_a_gradient_and_without_any(frozen_head, chunk_size):
    hidden, targets, head = parts()
    head.requires_grad_(not frozen_head)
    options = {"chunk_size": chunk_size, "frozen_head": frozen_head}
    expected = torch.distributions.Categorical(logits=head(hidden)).entropy()
    logps, value = logprobs_and_entropy(hidden, targets, head, entropy="value", **options)
    assert logps.requires_grad and not value.requires_grad
    assert torch.allclose(value, expected, atol=1e-5)
    assert not logprobs_and_entropy(hidden, targets, head, entropy="none", **options)[1].any()


def test_an_input_without_tokens_keeps_the_graph():
    hidden, _, head = parts()
    logps, entropy = logprobs_and_entropy(hidden[:0], torch.zeros(0, dtype=torch.long), head)
    assert logps.shape == entropy.shape == (0,) and logps.dtype == torch.float32
    (logps.sum() + entropy.sum()).backward()
    assert hidden.grad is not None and not hidden.grad.any()


def test_half_precision_logits_are_normalized_in_float32():
    hidden, targets, head = parts(torch.bfloat16)
    logps, entropy = logprobs_and_entropy(hidden, targets, head, chunk_size=4)
    assert logps.dtype == entropy.dtype == torch.float32
    expected = torch.distributions.Categorical(logits=head(hidden).double())
    assert torch.allclose(logps.double(), expected.log_prob(targets), atol=1e-5)
    assert torch.allclose(entropy.double(), expected.entropy(), atol=1e-5)
