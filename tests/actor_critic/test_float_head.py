# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Logits are float32 whatever the head's dtype, with autocast and without, and so are log-probabilities."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.tiny_models import tiny_causal_lm
from trl_ext.actor_critic import ActorCritic, float_head
from trl_ext.actor_critic.float_head import float32_logits

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture
def small_slices(monkeypatch):
    """So that even a small weight is cast in several pieces, the last of them shorter."""
    monkeypatch.setattr(float_head, "CAST_AT_A_TIME", 6 * 5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_values_and_gradients_are_float64s_to_float32s_precision(small_slices, dtype, bias, autocast):
    head = nn.Linear(6, 17, bias=bias).to(dtype)
    hidden = torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = float32_logits(head, hidden)
    exact_hidden = hidden.detach().double().requires_grad_()
    exact = exact_hidden @ head.weight.detach().double().T + (head.bias.detach().double() if bias else 0)
    assert out.dtype == torch.float32 and torch.allclose(out.double(), exact, atol=1e-6)
    weights = torch.linspace(-1, 1, 17)
    (out * weights).sum().backward()
    (exact * weights.double()).sum().backward()
    assert torch.allclose(hidden.grad.double(), exact_hidden.grad, atol=1e-6)
    rows = weights.double().outer(hidden.detach().double().sum(0))
    assert head.weight.grad.dtype == dtype
    assert torch.allclose(head.weight.grad.double(), rows, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_frozen_head_gets_no_gradient_and_passes_one_on(small_slices, dtype):
    head = nn.Linear(6, 17, bias=False).to(dtype).requires_grad_(False)
    hidden = torch.randn(4, 6, requires_grad=True)
    float32_logits(head, hidden).sum().backward()
    assert torch.allclose(hidden.grad, head.weight.float().sum(0).expand(4, 6), atol=1e-5)
    assert head.weight.grad is None


def test_adapters_on_the_head_count():
    model = tiny_causal_lm().to(torch.bfloat16)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False))
    head, hidden = peft.get_base_model().lm_head, torch.randn(3, model.config.hidden_size)
    base, a, b = head.base_layer.weight, head.lora_A["default"].weight, head.lora_B["default"].weight
    exact = (base.double() + head.scaling["default"] * b.double() @ a.double()) @ hidden.double().T
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = float32_logits(head, hidden)
        assert out.dtype == torch.float32 and torch.allclose(out.double(), exact.T, atol=1e-5)
    out.sum().backward()
    assert all(p.grad is not None for p in (a, b))


@pytest.mark.parametrize("role", ["actor_critic", "reference"])
def test_log_probabilities_under_autocast_are_those_of_float32_logits(role):
    """With logits of size 20, rounding them to bf16 moved log-probabilities by up to 0.16 from batch to batch."""
    model = tiny_causal_lm()
    with torch.no_grad():
        model.lm_head.weight.mul_(6)
    made = ActorCritic(model)
    ids, mask = torch.randint(3, 160, (8, 12)), torch.ones(8, 12, dtype=torch.long)
    states: list[torch.Tensor] = []
    trunk = made.reference.base_model if role == "reference" else made.causal_lm.base_model
    trunk.register_forward_hook(lambda module, args, out: states.append(out.last_hidden_state))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        out = made(ids, mask, mask[:, 6:].bool(), role=role)
    exact = (states[0][:, 5:-1].double() @ model.lm_head.weight.double().T).log_softmax(-1)
    expected = exact.gather(-1, ids[:, 6:].unsqueeze(-1)).squeeze(-1)
    assert exact.abs().max() > 20, "the logits are large enough for rounding to show"
    assert (out.logps.double() - expected).abs().max() < 1e-4
    if role == "actor_critic":
        assert (out.entropy.double() + (exact.exp() * exact).sum(-1)).abs().max() < 1e-4
