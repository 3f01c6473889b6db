# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Policy, critic and reference in one call: the numbers of the separate calls, and the KL of whole distributions."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from tests.actor_critic.makes import MAKES, batch, learn, scramble
from tests.tiny_models import tiny_causal_lm
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.actor_critic.trunk import hidden_states, logits, text_trunk


def softcapped() -> ActorCritic:
    return ActorCritic(tiny_causal_lm("gemma2"))


def tied() -> ActorCritic:
    model = tiny_causal_lm("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    return ActorCritic(model)


def adapter_on_the_head() -> ActorCritic:
    config = LoraConfig(r=4, target_modules=["lm_head", "q_proj"])
    made = build_actor_critic(tiny_causal_lm(), peft_config=config)
    scramble(made, scale=0.1)
    return made


def frozen_bfloat16() -> ActorCritic:
    config = LoraConfig(r=4, target_modules="all-linear")
    return build_actor_critic(tiny_causal_lm().to(torch.bfloat16), peft_config=config)


OTHERS = {f.__name__: f for f in (softcapped, tied, adapter_on_the_head, frozen_bfloat16)}


def distributions(made: ActorCritic, data, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the whole vocabulary under policy and reference, each by a pass of its own, float64."""
    ids, attention_mask, mask = data
    found = []
    for model in (nullcontext(made.causal_lm), made._reference()):
        with torch.no_grad(), model as lm:
            states = hidden_states(text_trunk(lm), ids, attention_mask)[:, -mask.shape[1] - 1 : -1]
            found.append((logits(lm, states).double() / temperature).log_softmax(-1))
    return found[0], found[1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("make", [*MAKES, *OTHERS])
def test_one_call_gives_what_separate_calls_give(make, temperature):
    torch.manual_seed(0)
    made, data = (MAKES | OTHERS)[make](), batch()
    options = {"temperature": temperature, "chunk_size": 4}
    first = made.eval()(*data, role="with_reference", **options)
    if make != "adapter_on_the_head":
        assert torch.equal(first.logps, first.ref_logps) and not first.kl.any(), "before the first update"
    learn(made, data)
    out = made.eval()(*data, role="with_reference", **options)
    with torch.no_grad():
        alone, reference = made(*data, **options), made(*data, role="reference", **options)
    for name in ("logps", "entropy", "values"):
        assert torch.equal(getattr(out, name), getattr(alone, name)), name
    assert torch.equal(out.ref_logps, reference.logps)
    log_p, log_q = distributions(made, data, temperature)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1) * data[2]
    torch.testing.assert_close(out.kl.double(), expected, rtol=1e-4, atol=1e-5)
    assert out.kl[data[2]].min() > 0 and not out.kl[~data[2]].any()
    assert not out.logps.requires_grad


def test_the_adapter_of_a_head_is_on_for_the_policy_alone():
    made = adapter_on_the_head()
    out = made.eval()(*batch(), role="with_reference", chunk_size=2)
    assert (out.logps - out.ref_logps).abs().max() > 1e-3
    before = made(*batch()).logps
    made(*batch(), role="with_reference")
    assert torch.equal(made(*batch()).logps, before), "the adapter is on again"


@pytest.mark.parametrize("make", [*MAKES, *OTHERS])
def test_the_references_states_give_the_kl_again_with_its_gradient(make):
    torch.manual_seed(0)
    made, data = (MAKES | OTHERS)[make](), batch()
    learn(made, data)
    options = {"temperature": 0.7, "chunk_size": 4}
    before = made.train()(*data, role="with_reference", **options)
    out = made(*data, ref_states=before.ref_states, entropy="value", **options)
    assert torch.equal(out.logps, before.logps)
    torch.testing.assert_close(out.kl, before.kl)
    parameters = [p for _, p in made.actor_parameters()]
    weights = torch.linspace(0.5, 2, out.kl.numel()).view_as(out.kl)
    ours = torch.autograd.grad((out.kl * weights).sum(), parameters, allow_unused=True)
    ids, attention_mask, mask = data
    _, log_q = distributions(made, data, 0.7)
    states = hidden_states(text_trunk(made.causal_lm), ids, attention_mask)[:, -mask.shape[1] - 1 : -1]
    log_p = (logits(made.causal_lm, states) / 0.7).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q.float())).sum(-1) * mask
    theirs = torch.autograd.grad((kl * weights).sum(), parameters, allow_unused=True)
    largest = max(b.abs().max() for b in theirs if b is not None)
    assert largest > 1e-3
    for a, b in zip(ours, theirs, strict=True):
        a, b = (torch.zeros(()) if x is None else x for x in (a, b))
        assert (a - b).abs().max() < 1e-2 * largest if make == "frozen_bfloat16" else 1e-4 * largest
