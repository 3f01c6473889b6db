# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Samples of a policy in training, and their likelihoods."""

import pytest
import torch

from tests import tiny_models
from trl_ext.actor_critic import ActorCritic
from trl_ext.evaluation.sampling import Policy, Samples
from trl_ext.experience.engines import TransformersEngine


def test_likelihoods_agree_with_transformers_loss():
    model, tokenizer = tiny_models.tiny_causal_lm(), tiny_models.tiny_tokenizer()
    actor_critic = ActorCritic(model, "head")
    with torch.no_grad():  # the policy moves away from the reference
        for parameter in actor_critic.policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    engine = TransformersEngine(tokenizer, eos_token_ids=[2], max_new_tokens=4)
    prompt_ids, completion_ids = [[5, 6, 7], [8], [9, 10]], [[11, 12, 2], [13, 14, 15, 16], [2]]
    samples = Samples(["a", "b", "c"], prompt_ids, ["", "", ""], completion_ids, [True, False, True], [2, 4, 0])
    found = Policy(actor_critic, tokenizer, engine, temperature=0.7, batch_size=2, chunk_size=3).likelihoods(samples)

    def nll(lm, i, temperature, tokens):
        """Transformers' own loss on one unpadded sample."""
        ids = torch.tensor([prompt_ids[i] + completion_ids[i][:tokens]])
        labels = ids.clone()
        labels[:, : len(prompt_ids[i])] = -100
        with torch.no_grad():
            logits = lm(ids).logits / temperature
            return float(lm.loss_function(logits, labels, lm.config.vocab_size)) * tokens

    def kl(i):
        """Torch's own divergence of the two distributions at each state of one unpadded sample."""
        ids = torch.tensor([prompt_ids[i] + completion_ids[i]])
        with torch.no_grad():
            policy, reference = (
                torch.distributions.Categorical(logits=lm(ids).logits[0, len(prompt_ids[i]) - 1 : -1] / 0.7)
                for lm in (actor_critic.policy, actor_critic.reference)
            )
        return float(torch.distributions.kl_divergence(policy, reference).sum())

    for i, length in enumerate([2, 4, 0]):
        assert float(found.kls[i]) == pytest.approx(kl(i), abs=1e-4) != 0
        if length:
            assert float(found.ref_nlls[i]) == pytest.approx(nll(actor_critic.reference, i, 1.0, length), abs=1e-4)


def test_sampling_repeats_itself_and_leaves_the_generators_alone():
    actor_critic, tokenizer = ActorCritic(tiny_models.tiny_causal_lm(), "head"), tiny_models.tiny_tokenizer()
    engine = TransformersEngine(tokenizer, eos_token_ids=[2], max_new_tokens=6)
    policy = Policy(actor_critic, tokenizer, engine)
    actor_critic.train()
    state = torch.get_rng_state()
    first, second, other = (policy.sample(["one", "two"], seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state) and actor_critic.training
    assert first.completion_ids == second.completion_ids != other.completion_ids
