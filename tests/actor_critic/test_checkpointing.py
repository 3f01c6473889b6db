# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Two adapters on one base: gradients under activation checkpointing, and what switching leaves behind."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from tests.actor_critic.makes import batch, lora_config, scramble, two_adapters
from tests.tiny_models import tiny_causal_lm
from trl_ext._compat import AdapterSwitch
from trl_ext.actor_critic import ActorCritic

POLICY_WEIGHTS = torch.linspace(-1, 1, 15).view(3, 5)
VALUE_WEIGHTS = torch.linspace(1, -2, 18).view(3, 6)


def gradients_with_checkpointing(**options: Any) -> tuple[ActorCritic, dict[str, Tensor], int]:
    """One forward, one loss on both roles, one backward; and how often the first block was entered."""
    model = two_adapters()
    scramble(model)
    model.gradient_checkpointing_enable(options or None)
    runs = []
    model.causal_lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    out = model.train()(*batch())
    ((out.logps * POLICY_WEIGHTS).sum() + (out.values * VALUE_WEIGHTS).sum()).backward()
    return model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(runs)


def gradients_of_two_models(model: ActorCritic) -> dict[str, Tensor]:
    """The same from two separate PEFT models, one per role, through their own `forward`, without checkpointing."""
    ids, attention_mask, mask = batch()
    inputs = {
        "input_ids": ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0),
        "output_hidden_states": True,
    }
    weights = dict(model.named_parameters())
    gradients: dict[str, Any] = {}
    for role in ("default", "critic"):
        alone = get_peft_model(tiny_causal_lm(), lora_config()).eval()
        names = {name: f"policy.{name.replace('.default.', f'.{role}.')}" for name, _ in alone.named_parameters()}
        with torch.no_grad():
            for name, p in alone.named_parameters():
                p.copy_(weights[names[name]])
        out = alone(**inputs)
        if role == "default":
            logps = out.logits[:, -6:-1].log_softmax(-1).gather(-1, ids[:, -5:, None])[..., 0]
            loss = (logps * POLICY_WEIGHTS * mask).sum()
        else:
            head = torch.nn.Linear(32, 1)
            head.load_state_dict(model.value_head.state_dict())
            loss = (head(out.hidden_states[-1][:, -6:])[..., 0] * VALUE_WEIGHTS).sum()
        loss.backward()
        gradients |= {names[name]: p.grad for name, p in alone.named_parameters() if p.requires_grad}
    return gradients | {f"value_head.{name}": p.grad for name, p in head.named_parameters()}


def relative_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of the whole gradients: an entry near 0 is the sum of large ones, with their rounding."""
    assert a.keys() == b.keys()
    difference = torch.cat([(a[name] - b[name]).flatten() for name in a])
    return float(difference.norm() / torch.cat([b[name].flatten() for name in a]).norm())


def test_gradients_equal_those_of_two_separate_models():
    model, gradients, runs = gradients_with_checkpointing()
    assert runs == 4, "each role once forward and once recomputed"
    assert relative_difference(gradients, gradients_of_two_models(model)) < 1e-6


def test_without_the_checkpoint_contexts_the_gradients_would_be_wrong(monkeypatch):
    """Recomputation would run under whatever adapter is active then. Should this fail one day, they can go."""
    monkeypatch.setattr(AdapterSwitch, "checkpoint_contexts", lambda self: (nullcontext(), nullcontext()))
    model, gradients, _ = gradients_with_checkpointing()
    assert relative_difference(gradients, gradients_of_two_models(model)) > 1e-2


def test_gradients_are_the_same_with_fewer_checkpointed_layers():
    model, expected, runs = gradients_with_checkpointing()
    some, gradients, runs_of_some = gradients_with_checkpointing(every_n_layers=2)
    layers = [layer.gradient_checkpointing for layer in some.causal_lm.model.layers]
    assert layers == [i % 2 == 0 for i in range(len(layers))] and len(layers) > 1
    assert all(layer.gradient_checkpointing for layer in model.causal_lm.model.layers)
    assert runs == runs_of_some == 4, "the first layer is one of them: twice forward, twice again"
    assert gradients.keys() == expected.keys() and all(torch.equal(gradients[n], expected[n]) for n in expected)


def test_reentrant_checkpointing_is_refused_with_two_adapters():
    with pytest.raises(ValueError, match="needs checkpointing with `use_reentrant=False`"):
        two_adapters().gradient_checkpointing_enable({"use_reentrant": True})


def test_a_separate_critic_is_checkpointed_too():
    model = ActorCritic(tiny_causal_lm(), "copy")
    model.gradient_checkpointing_enable()
    assert model.critic is not None
    assert model.policy.is_gradient_checkpointing and model.critic.is_gradient_checkpointing
    runs = []
    model.critic.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    scramble(model.value_head)
    torch.nn.init.normal_(model.value_head.weight)
    model.train()(*batch()).values.sum().backward()
    assert len(runs) == 2


def test_the_adapter_comes_back_after_an_exception(monkeypatch):
    model = two_adapters()
    scramble(model)
    expected, calls = model(*batch()), []
    switch = AdapterSwitch(model.policy)
    before = switch.state()
    assert before and all(active == ["default"] and not disabled for active, disabled in before)
    for name in ("critic", None):
        with pytest.raises(KeyboardInterrupt), switch.use(name):
            assert switch.state() != before
            raise KeyboardInterrupt
        assert switch.state() == before

    def fails_the_second_time(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    hook = model.causal_lm.model.layers[1].register_forward_hook(fails_the_second_time)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(*batch())
    hook.remove()
    assert switch.state() == before
    again = model(*batch())
    assert torch.equal(again.logps, expected.logps) and torch.equal(again.values, expected.values)


def test_switches_nest():
    model = two_adapters()
    switch = AdapterSwitch(model.policy)
    with switch.use("critic"):
        inner = switch.state()
        with switch.use(None):
            assert all(disabled for _, disabled in switch.state())
        assert switch.state() == inner
    assert {tuple(active) for active, _ in switch.state()} == {("default",)}
