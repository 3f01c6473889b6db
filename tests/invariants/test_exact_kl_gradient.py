# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`kl_estimator="exact"` against all completions of a tiny model: the gradient of E[r] - beta KL, to 1e-6 in float64.

The oracles enumerate completions, or states, and let autograd differentiate; they share no code with the trainer.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from tests.actor_critic.makes import scramble
from tests.tiny_models import tiny_causal_lm
from trl_ext import PPOConfig
from trl_ext.actor_critic import ActorCritic, ForwardOutput, build_actor_critic
from trl_ext.experience.advantages import add_advantages
from trl_ext.experience.rollout import Rollout, collate
from trl_ext.learning import token_losses
from trl_ext.objectives.exact_kl import compare, logprobs_entropy_and_kl

EOS, V, LENGTH, D, BETA = 0, 4, 3, 5, 0.37

Completion = tuple[int, ...]


def completions(start: Completion = ()) -> Iterator[Completion]:
    """All that begin with `start`: they end with EOS, or at the length limit."""
    for token in range(V):
        longer = (*start, token)
        if token == EOS or len(longer) == LENGTH:
            yield longer
        else:
            yield from completions(longer)


ALL = list(completions())
STATES = sorted({c[:t] for c in ALL for t in range(len(c))}, key=lambda s: (len(s), s))


class World:
    """A policy and a reference as tables of hidden states before a head, at a sampling temperature."""

    def __init__(self, temperature: float = 1.0):
        generator = torch.Generator().manual_seed(3)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.temperature = temperature
        self.hidden, self.head = drawn(len(STATES), D).requires_grad_(), drawn(D, V).requires_grad_()
        self.ref_hidden, self.ref_head = drawn(len(STATES), D), drawn(D, V)
        self.rewards = drawn(len(ALL))

    @property
    def parameters(self) -> list[Tensor]:
        return [self.hidden, self.head]

    # ---- the oracle's side ----

    def log_p(self) -> Tensor:
        return (self.hidden @ self.head / self.temperature).log_softmax(-1)

    def kl(self) -> Tensor:
        """One number for each state."""
        log_q = (self.ref_hidden @ self.ref_head / self.temperature).log_softmax(-1)
        return (self.log_p().exp() * (self.log_p() - log_q)).sum(-1)

    def probability(self, completion: Completion) -> Tensor:
        steps = [self.log_p()[STATES.index(completion[:t]), token] for t, token in enumerate(completion)]
        return torch.stack(steps).sum().exp()

    def probabilities(self) -> Tensor:
        return torch.stack([self.probability(c) for c in ALL])

    def kl_of_completions(self) -> Tensor:
        """KL of the distributions over completions, by its definition."""
        log_q = (self.ref_hidden @ self.ref_head / self.temperature).log_softmax(-1)
        log_ratios = [
            sum(self.log_p()[s, a] - log_q[s, a] for s, a in ((STATES.index(c[:t]), a) for t, a in enumerate(c)))
            for c in ALL
        ]
        return (self.probabilities() * torch.stack(log_ratios)).sum()

    def action_values(self, gamma: float) -> tuple[Tensor, Tensor]:
        """Q(state, token), and V(state), which leaves out the KL at the state itself; by backward induction."""
        log_p, kl = self.log_p().detach(), self.kl().detach()
        q, v = torch.zeros(len(STATES), V, dtype=torch.float64), torch.zeros(len(STATES), dtype=torch.float64)
        for i in reversed(range(len(STATES))):
            for token in range(V):
                reached = (*STATES[i], token)
                if reached in ALL:
                    q[i, token] = self.rewards[ALL.index(reached)]
                else:
                    j = STATES.index(reached)
                    q[i, token] = gamma * (v[j] - BETA * kl[j])
            v[i] = (log_p[i].exp() * q[i]).sum()
        return q, v

    def visits(self) -> Tensor:
        """Probability that a completion comes to each state."""
        p = self.probabilities()
        return torch.stack([p[[c[: len(s)] == s and len(c) > len(s) for c in ALL]].sum() for s in STATES])

    def local_objective(self, gamma: float, visits: Tensor, values: Tensor) -> Tensor:
        """What a policy gains by its choice in each state alone, over another policy's states (CPI's surrogate)."""
        return (visits.detach() * ((self.log_p().exp() * values.detach()).sum(-1) - BETA * self.kl())).sum()

    # ---- the trainer's side ----

    def scored(self, learning: bool) -> tuple[Any, ...]:
        """Log-probabilities, entropies, reference log-probabilities and KL of every completion, (B, C) each."""
        mask = torch.tensor([[t < len(c) for t in range(LENGTH)] for c in ALL])
        rows = torch.tensor([STATES.index(c[:t]) for c in ALL for t in range(len(c))])
        tokens = torch.tensor([token for c in ALL for token in c])
        states, heads = (
            (self.hidden[rows], self.ref_hidden[rows], tokens),
            (
                lambda h: h @ self.head,
                lambda h: h @ self.ref_head,
            ),
        )
        options: dict[str, Any] = {"temperature": self.temperature, "chunk_size": 7}
        out = (logprobs_entropy_and_kl if learning else compare)(*states, *heads, **options)
        zeros = torch.zeros(mask.shape, dtype=torch.float64)
        return tuple(zeros.masked_scatter(mask, column) for column in out)

    def rollout(self, values: Tensor, **options: Any) -> Rollout:
        """All completions, once each, with advantages."""
        defaults = PPOConfig(kl_estimator="exact", lam=1.0, whiten_advantages=False, use_cpu=True).advantage_options
        made = collate([[1]] * len(ALL), [list(c) for c in ALL], [c[-1] == EOS for c in ALL], pad_token_id=0)
        made.scores = self.rewards
        made.old_logps, _, made.ref_logps, made.kl = self.scored(learning=False)
        made.weights = made.weights.double()
        made.old_values = torch.zeros_like(made.old_logps)
        for row, completion in enumerate(ALL):
            for t in range(len(completion)):
                made.old_values[row, t] = values[STATES.index(completion[:t])]
        last = torch.zeros(len(ALL), dtype=torch.float64)
        add_advantages(made, last, replace(defaults, **options), kl_coef=BETA, reduce=lambda tensor: tensor)
        return made

    def expected_gradient(self, rollout: Rollout, probabilities: Tensor) -> list[Tensor]:
        """Expected gradient of what the trainer maximises, summed over tokens."""
        logps, entropy, kl = self.scored(learning=True)
        out = ForwardOutput(logps, entropy, torch.zeros(len(ALL), LENGTH + 1, dtype=torch.float64), kl=kl)
        bounds: dict[str, Any] = {"cliprange": 0.99, "cliprange_high": 1e9}
        options = PPOConfig(**bounds, vf_coef=0.0, use_cpu=True).loss_options
        loss = (token_losses(out, rollout, options)["loss"] * rollout.completion_mask).sum(1)
        return list(torch.autograd.grad(-(probabilities.detach() * loss).sum(), self.parameters))


def assert_close(ours: list[Tensor], objective: Tensor, world: World) -> None:
    for a, b in zip(ours, torch.autograd.grad(objective, world.parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert b.abs().max() > 0.01


def zeros(world: World, gamma: float = 1.0) -> Tensor:
    return torch.zeros(len(STATES), dtype=torch.float64)


def exact(world: World, gamma: float = 1.0) -> Tensor:
    return world.action_values(gamma)[1]


def test_the_enumeration_is_whole():
    world = World()
    assert len(ALL) == 1 + 3 + 9 * 4 and len(STATES) == 1 + 3 + 9
    assert world.probabilities().sum().item() == pytest.approx(1.0)
    lengths = torch.tensor([float(len(c)) for c in ALL], dtype=torch.float64)
    assert world.visits().sum().item() == pytest.approx((world.probabilities() * lengths).sum().item())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_value_of_the_kl(temperature):
    world = World(temperature)
    kl = world.scored(learning=False)[3].sum(1)
    expected = (world.probabilities() * kl).sum().item()
    assert expected == pytest.approx(world.kl_of_completions().item(), abs=1e-9)
    assert expected > 0.5


@pytest.mark.parametrize("values", [zeros, exact])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gradient_is_that_of_reward_less_kl(temperature, values):
    world = World(temperature)
    ours = world.expected_gradient(world.rollout(values(world)), world.probabilities())
    objective = (world.probabilities() * world.rewards).sum() - BETA * world.kl_of_completions()
    assert_close(ours, objective, world)


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_with_exact_values_any_lambda_will_do(lam):
    world = World()
    ours = world.expected_gradient(world.rollout(exact(world), lam=lam), world.probabilities())
    assert_close(ours, (world.probabilities() * world.rewards).sum() - BETA * world.kl_of_completions(), world)


@pytest.mark.parametrize("values", [zeros, exact])
def test_with_a_discount_it_is_the_gradient_of_each_choice(values):
    """Policy gradients with a discount in the returns alone are those of the choice at each visited state."""
    world = World(0.6)
    ours = world.expected_gradient(world.rollout(values(world, 0.8), gamma=0.8), world.probabilities())
    assert_close(ours, world.local_objective(0.8, world.visits(), world.action_values(0.8)[0]), world)
    # The oracle itself: without a discount it is the whole objective.
    whole = (world.probabilities() * world.rewards).sum() - BETA * world.kl_of_completions()
    local = world.local_objective(1.0, world.visits(), world.action_values(1.0)[0])
    for a, b in zip(*(torch.autograd.grad(o, world.parameters) for o in (whole, local)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_later_minibatches_keep_the_states_of_the_old_policy():
    world = World()
    rollout, old, visits = world.rollout(exact(world)), world.probabilities(), world.visits()
    values = world.action_values(1.0)[0]
    with torch.no_grad():
        world.hidden.add_(0.3 * torch.randn(world.hidden.shape, generator=torch.Generator().manual_seed(5)))
    assert_close(world.expected_gradient(rollout, old), world.local_objective(1.0, visits, values), world)


def test_an_engines_weights_leave_the_kl_alone():
    """The weight of a token corrects the choice of that token, which the KL at its state does not depend on."""
    world, engine = World(), World()
    with torch.no_grad():
        engine.hidden.add_(0.3 * torch.randn(world.hidden.shape, generator=torch.Generator().manual_seed(5)))
    rollout = world.rollout(exact(world), lam=0.0)  # what the engine says after a token then does not count
    rollout.weights = (rollout.old_logps - engine.scored(learning=False)[0]).exp().detach()
    ours = world.expected_gradient(rollout, engine.probabilities())
    assert_close(ours, world.local_objective(1.0, engine.visits(), world.action_values(1.0)[0]), world)


def test_the_loss_of_a_state_takes_no_weight_of_the_token_chosen_there():
    """A weight with a mean of 1 would not bias it: it would only add noise."""
    world = World()
    rollout = world.rollout(zeros(world))
    rollout.old_logps, rollout.weights = rollout.old_logps + 0.1, 2 * rollout.weights
    logps, entropy, kl = world.scored(learning=True)
    out = ForwardOutput(logps, entropy, torch.zeros(len(ALL), LENGTH + 1, dtype=torch.float64), kl=kl)
    losses = token_losses(out, rollout, PPOConfig(vf_coef=0.0, use_cpu=True).loss_options)
    torch.testing.assert_close(losses["loss"] - 2 * losses["policy_loss"], BETA * kl)


def test_whitened_advantages_keep_the_meaning_of_the_coefficient():
    world = World()
    plain, white = (world.rollout(zeros(world), whiten_advantages=on) for on in (False, True))
    deviation = plain.advantages[plain.completion_mask].std(correction=0)
    objective = (world.probabilities() * world.rewards).sum() - BETA * world.kl_of_completions()
    assert_close(world.expected_gradient(white, world.probabilities()), objective / deviation, world)
    torch.testing.assert_close(white.returns, plain.returns)


@pytest.mark.parametrize("whiten_advantages", [False, True])
def test_whitened_rewards_too(whiten_advantages):
    world = World()
    options = {"whiten_rewards": True}
    plain = world.rollout(zeros(world))
    rewards = plain.advantages - torch.cat([plain.advantages[:, 1:], torch.zeros(len(ALL), 1)], 1)
    inside = rewards[plain.completion_mask]
    deviation, mean = inside.std(correction=0), inside.mean()
    lengths = torch.tensor([float(len(c)) for c in ALL], dtype=torch.float64)
    objective = (world.probabilities() * world.rewards).sum() - BETA * world.kl_of_completions()
    # The mean of the rewards stays, which pays or charges every token alike.
    objective = objective / deviation + mean * (1 - 1 / deviation) * (world.probabilities() * lengths).sum()
    if whiten_advantages:
        white = world.rollout(zeros(world), **options)
        objective = objective / white.advantages[white.completion_mask].std(correction=0)
    rollout = world.rollout(zeros(world), whiten_advantages=whiten_advantages, **options)
    assert_close(world.expected_gradient(rollout, world.probabilities()), objective, world)


def test_the_exact_kl_in_the_reward_of_its_own_token_would_be_wrong():
    """A token cannot change the KL at the state that it was chosen in: no gradient comes of charging it with that."""
    world = World()
    rollout = world.rollout(zeros(world))
    to_come = rollout.kl.flip(1).cumsum(1).flip(1)
    rollout.advantages = (rollout.scores[:, None] - BETA * to_come) * rollout.completion_mask
    rollout.kl_coefs = torch.zeros_like(rollout.kl_coefs)
    ours = world.expected_gradient(rollout, world.probabilities())
    objective = (world.probabilities() * world.rewards).sum() - BETA * world.kl_of_completions()
    expected = torch.autograd.grad(objective, world.parameters)
    assert max((a - b).abs().max() for a, b in zip(ours, expected, strict=True)) > 0.05


# ---- a transformer ----


def moved(with_adapter: bool) -> ActorCritic:
    """A policy that is some way from its reference."""
    model = tiny_causal_lm(vocab_size=V + 2)
    if not with_adapter:
        made = ActorCritic(model)
        with torch.no_grad():
            for p in made.causal_lm.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        return made
    made = build_actor_critic(model, peft_config=LoraConfig(r=4, target_modules="all-linear"))
    scramble(made, scale=0.1)
    return made


@pytest.mark.parametrize("chunk_size", [7, 512])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_transformer_has_that_gradient_too(with_adapter, chunk_size):
    torch.manual_seed(0)
    made, temperature, prompt = moved(with_adapter).eval(), 0.7, [V + 1, V]
    options = {"temperature": temperature, "chunk_size": chunk_size}
    rewards = torch.randn(len(ALL))
    rollout = collate([prompt] * len(ALL), [list(c) for c in ALL], [c[-1] == EOS for c in ALL], pad_token_id=0)
    tokens = (rollout.input_ids, rollout.attention_mask, rollout.completion_mask)

    def distributions(lm: Any) -> Tensor:
        logits = lm(rollout.input_ids).logits[:, len(prompt) - 1 : -1] / temperature
        return logits.masked_fill(torch.arange(V + 2) >= V, -torch.inf).log_softmax(-1)

    made.causal_lm.lm_head.register_forward_hook(
        lambda *args: args[2].index_fill(-1, torch.tensor([V, V + 1]), -torch.inf)
    )
    if made.reference is not None:
        made.reference.lm_head.register_forward_hook(
            lambda *a: a[2].index_fill(-1, torch.tensor([V, V + 1]), -torch.inf)
        )
    parameters = [p for _, p in made.actor_parameters()]
    log_p = distributions(made.causal_lm)
    with torch.no_grad():
        if made.reference is not None:
            log_q = distributions(made.reference)
        else:
            with made.policy.disable_adapter():
                log_q = distributions(made.causal_lm)
    chosen = [t.gather(-1, rollout.input_ids[:, len(prompt) :, None])[..., 0] for t in (log_p, log_q)]
    log_prob, log_ratio = ((x * rollout.completion_mask).sum(1) for x in (chosen[0], chosen[0] - chosen[1]))
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    objective = (log_prob.exp() * (rewards - BETA * log_ratio)).sum()
    expected = torch.autograd.grad(objective, parameters, allow_unused=True)

    out = made(*tokens, role="with_reference", **options)
    rollout.scores, rollout.old_logps, rollout.ref_logps, rollout.kl = rewards, out.logps, out.ref_logps, out.kl
    advantages = PPOConfig(kl_estimator="exact", lam=1.0, whiten_advantages=False, use_cpu=True).advantage_options
    add_advantages(rollout, torch.zeros(len(ALL)), advantages, kl_coef=BETA, reduce=lambda tensor: tensor)
    learned = made(*tokens, ref_states=out.ref_states, entropy="value", **options)
    torch.testing.assert_close(learned.kl, out.kl)
    losses = token_losses(learned, rollout, PPOConfig(vf_coef=0.0, use_cpu=True).loss_options)["loss"]
    loss = (log_prob.detach().exp() * (losses * rollout.completion_mask).sum(1)).sum()
    ours = torch.autograd.grad(-loss, parameters, allow_unused=True)
    for a, b in zip(ours, expected, strict=True):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert max(b.abs().max() for b in expected if b is not None) > 0.01
