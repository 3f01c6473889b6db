# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The critic's own optimizer steps: who learns, from which samples, in which units, and with which state."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests import scripted
from tests.tiny_models import tiny_causal_lm
from tests.two_threads import on_two
from trl_ext.actor_critic import ActorCritic
from trl_ext.critic_learning import CriticLearner, CriticOptions, explained_on_held_out
from trl_ext.experience.rollout import Rollout, collate
from trl_ext.experience.two_critics import critics_of
from trl_ext.micro_batches import MicroBatches

OPTIONS = CriticOptions(critic_epochs=2, critic_mini_batches=2, critic_max_grad_norm=1.0, cliprange_value=None)


def same(tensor, operation="sum"):
    return tensor


def actor_critic(kind: str = "copy") -> ActorCritic:
    torch.manual_seed(0)
    policy = tiny_causal_lm()
    if "adapter" in kind:
        policy = get_peft_model(policy, LoraConfig(r=2, target_modules="all-linear"))
    return ActorCritic(policy, "adapter", num_critics=2) if kind == "two adapters" else ActorCritic(policy, kind)


def learner(model: ActorCritic, options: CriticOptions = OPTIONS, size: int = 8, rate: float = 1e-2) -> CriticLearner:
    sizes = MicroBatches(size, "per_device_train_batch_size")
    return CriticLearner(
        model, options, learning_rate=rate, weight_decay=0.0, micro_batches=sizes, autocast=nullcontext, reduce=same
    )


def rollout(n: int = 8) -> Rollout:
    """Completions of different lengths; the second and the last prompt are held out."""
    completions = [[10 + i + j for j in range(1 + i % 4)] for i in range(n)]
    made = collate([[1, 2 + i] for i in range(n)], completions, [True] * n, pad_token_id=0)
    made.returns = torch.where(made.completion_mask, torch.arange(n).unsqueeze(1) - 2.0, 0.0)
    made.held_out[[1, n - 1]] = True
    return made


def weights(model: ActorCritic) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["head", "copy", "adapter"])
def test_the_critic_learns_and_nothing_else_does(kind):
    model = actor_critic(kind)
    critic = {name for name, _ in model.critic_parameters()}
    before = weights(model)
    first, second = (learner_.learn(rollout(), 2, (0,)) for learner_ in [learner(model)] for _ in range(2))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == critic and all(p.grad is None for p in model.parameters())
    assert second["value_loss"] < first["value_loss"] and first["critic_skipped_steps"] == 0


@pytest.mark.parametrize("vf_coef", [0.0, 5.0])
def test_the_policys_own_steps_have_no_value_loss_and_evaluations_tell_it(vf_coef, tmp_path):
    """On a shared trunk, which the value loss would move."""
    made = scripted.trainer(
        tmp_path, critic_epochs=1, max_steps=1, total_episodes=None, eval_dataset=scripted.prompts(4)
    )
    made.train()
    made.args.vf_coef = vf_coef
    piece = next(iter(made._minibatch.pieces(slice(0, 4), made.micro_batches)))
    out = made.model(piece.input_ids, piece.attention_mask, piece.completion_mask, role="actor")
    ratio = (out.logps - piece.old_logps).exp()
    bounded = ratio.clamp(1 - made.args.cliprange, 1 + made.args.cliprange)
    surrogate = -torch.minimum(ratio * piece.advantages, bounded * piece.advantages)[piece.completion_mask].sum()
    norm = made.model.policy.model.norm.weight
    (expected,) = torch.autograd.grad(surrogate / made._minibatch.tokens, norm)
    made.model.zero_grad()
    made.compute_loss(made.model, piece).backward()
    torch.testing.assert_close(norm.grad, expected)
    assert made.model.value_head.weight.grad is None and expected.any()
    assert made.evaluate()["eval_value_loss"] > 0


@pytest.mark.parametrize(("kind", "rate", "passes"), [("head", 3e-2, 30), ("copy", 3e-3, 5), ("adapter", 1e-2, 10)])
def test_a_critic_that_reads_the_reward_so_far_explains_what_no_token_tells(kind, rate, passes):
    """Returns are drawn at random, and stand in what the critic reads before the last token alone."""
    generator, n = torch.Generator().manual_seed(3), 256
    explained = {}
    for reads in (False, True):
        model = actor_critic(kind)
        ids = torch.randint(5, 90, (n, 3), generator=generator).tolist()
        samples = collate([[1, 2]] * n, ids, [True] * n, pad_token_id=0)
        samples.returns = torch.randn(n, 1, generator=generator).expand(n, 3).clone()
        samples.held_out[: n // 2] = True
        if reads:
            model.value_head.read_rewards()
            samples.rewards_so_far = torch.zeros(n, 4)
            samples.rewards_so_far[:, 2:] = 5 * samples.returns[:, :2]
        made = learner(model, size=64, rate=rate)
        made.learn(samples, passes, (0,))
        explained[reads] = explained_on_held_out(made, [samples])["by_position"]
    assert explained[True][2] > 0.7 and explained[True][1] < 0.1
    assert max(explained[False]) < 0.1


def test_held_out_samples_and_the_size_of_the_pieces_change_nothing():
    ends = []
    for size, changed in ((8, False), (8, True), (1, False)):
        model, samples = actor_critic(), rollout()
        if changed:
            samples.returns[samples.held_out] = 1e3
        learner(model, size=size).learn(samples, 1, (0,))
        ends.append(weights(model))
    for name, end in ends[0].items():
        assert torch.equal(end, ends[1][name]), name
        torch.testing.assert_close(end, ends[2][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["head", "copy", "adapter", "two adapters"])
def test_a_step_has_the_gradient_of_the_loss_of_the_values_in_forward(kind):
    model, samples = actor_critic(kind), rollout()
    torch.nn.init.normal_(model.value_head.weight)
    model.return_scale.mean.fill_(0.5)
    model.return_scale.std.fill_(2.0)
    samples.old_values = torch.where(samples.completion_mask, 0.25, 0.0)
    options = replace(OPTIONS, critic_mini_batches=1, cliprange_value=0.3, critic_max_grad_norm=0.01)
    made = learner(model, options, size=3)

    out = model(samples.input_ids, samples.attention_mask, samples.completion_mask)
    values, old_values = out.values[:, :-1], samples.old_values
    mask = samples.completion_mask
    torch.testing.assert_close(made.values(samples)[mask], values[mask], rtol=1e-4, atol=1e-5)
    if out.value_gap is not None:  # each critic learns from its own prompts, the first one below the mean by the gap
        samples.value_gap = torch.where(mask, 0.5, 0.0)
        sign = 2 * critics_of(samples).unsqueeze(1) - 1
        values, old_values = values + sign * out.value_gap[:, :-1], old_values + sign * samples.value_gap
    # In standard deviations of the return, 2; the value clip too.
    now, old, returns = values / 2, old_values / 2, samples.returns / 2
    clipped = old + (now - old).clamp(-0.3, 0.3)
    errors = torch.maximum((now - returns) ** 2, (clipped - returns) ** 2) / 2
    loss = errors[mask & ~samples.held_out.unsqueeze(1)].mean()
    parameters = [p for _, p in model.critic_parameters()]
    gradients = [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))

    metrics = made.learn(samples, 1, (0,))
    assert metrics["value_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["critic_grad_norm"] == pytest.approx(norm, rel=1e-3) and norm > 0.1
    # Adam's first moment is a tenth of the gradient, which was clipped to 0.01.
    moments = [state["exp_avg"] for state in made.optimizer.state.values()]
    assert float(torch.nn.utils.get_total_norm(moments)) == pytest.approx(0.001, rel=1e-3)


def test_the_order_of_the_samples_follows_from_the_seed():
    ends = []
    for seed in (0, 0, 1):
        model = actor_critic()
        learner(model).learn(rollout(), 1, (seed,))
        ends.append(weights(model)["value_head.weight"])
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_memory_that_runs_out_halves_the_pieces(caplog):
    expected, model = actor_critic(), actor_critic()
    learner(expected, size=2).learn(rollout(), 1, (0,))
    states, made = model.critic_states, learner(model, size=4)

    def too_large(ids, *masks):
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return states(ids, *masks)

    model.critic_states = too_large
    made.learn(rollout(), 1, (0,))
    assert made.micro_batches.size == 2
    for name, end in weights(expected).items():
        torch.testing.assert_close(end, weights(model)[name], rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_no_number_is_skipped_with_a_warning(caplog):
    model, samples = actor_critic(), rollout()
    samples.returns[:] = torch.nan
    before = weights(model)
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").propagate, kept = True, logging.getLogger("transformers").propagate
        metrics = learner(model).learn(samples, 1, (0,))
        logging.getLogger("transformers").propagate = kept
    assert metrics["critic_skipped_steps"] == 1 and "critic_grad_norm" not in metrics
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_optimizer_goes_on_from_its_saved_state(tmp_path):
    model, other = actor_critic(), actor_critic()
    made, resumed = learner(model), learner(other)
    made.learn(rollout(), 1, (0,))
    made.save(tmp_path)
    other.load_state_dict(model.state_dict())
    resumed.load(tmp_path)
    made.learn(rollout(), 1, (1,))
    resumed.learn(rollout(), 1, (1,))
    assert all(torch.equal(p, weights(other)[name]) for name, p in model.named_parameters())


def test_two_processes_take_the_step_of_one_with_all_samples():
    samples, options = rollout(), replace(OPTIONS, critic_mini_batches=1, critic_max_grad_norm=0.1)
    one, *two = (learner(actor_critic(), options) for _ in range(3))
    expected = one.learn(samples, 1, (0,))

    def process(number, reduce):
        two[number].reduce = reduce
        own = samples.select(torch.arange(3) if number == 0 else torch.arange(3, 8))
        return two[number].learn(own, 1, (0,)), explained_on_held_out(two[number], [own])

    explained = explained_on_held_out(one, [samples])
    assert (
        on_two(process)
        == [
            (
                pytest.approx(expected, rel=1e-4),
                explained | {"explained_variance": pytest.approx(explained["explained_variance"], abs=1e-3)},
            )
        ]
        * 2
    )
    # Adam's first moments are a tenth of the gradients: a step of its own would hide their size.
    for made in two:
        for mine, other in zip(made.optimizer.state.values(), one.optimizer.state.values(), strict=True):
            torch.testing.assert_close(mine["exp_avg"], other["exp_avg"], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("critic", ["head", "copy", "adapter"])
def test_a_process_without_a_sample_takes_part_in_the_sums_of_the_others(critic):
    """Its samples are all held out, or have no reward; a sum that it leaves out makes the others wait for ever."""

    def sums_of(held_out: bool) -> tuple[list[Any], dict[str, float]]:
        made, samples = learner(actor_critic(critic)), rollout()
        asked: list[Any] = []
        samples.held_out[:] = held_out

        def reduce(tensor: torch.Tensor, operation: str = "sum") -> torch.Tensor:
            asked.append((tuple(tensor.shape), operation))
            return tensor + (tensor.dim() == 0 and tensor.is_floating_point())  # tokens of the other process

        made.reduce = reduce
        return asked, made.learn(samples, 2, (0,))

    (asked, metrics), (with_samples, measured) = sums_of(True), sums_of(False)
    assert asked == with_samples and metrics.keys() == measured.keys()


def test_explained_variance_by_position_is_the_one_worked_out_by_hand():
    model, samples = actor_critic(), rollout(24)
    made = learner(model)
    samples.held_out[:] = True
    samples.returns = torch.where(samples.completion_mask, torch.arange(24).unsqueeze(1).float(), 0.0)
    errors = torch.where(samples.completion_mask, torch.tensor([1.0, -1.0] * 12).unsqueeze(1), 0.0)
    made.values = lambda batch: batch.returns - errors[batch.returns.amax(1).long(), : batch.completion_length]
    found = explained_on_held_out(made, [samples.select(torch.arange(0, 11)), samples.select(torch.arange(11, 24))])
    # The first token: returns 0 to 23 have the variance (24^2 - 1) / 12, the errors have 1.
    assert found["by_position"][0] == pytest.approx(1 - 12 / (24**2 - 1))
    assert len(found["by_position"]) == 4 and found["by_position"][3] is None, "only six are so long"
    assert (found["completions"], found["tokens"]) == (24, 60)
    samples.held_out[:] = False
    assert explained_on_held_out(made, [samples]) is None


@pytest.mark.parametrize("settings", [{"critic_epochs": 2, "critic_mini_batches": 2}, {"scale_returns": True}])
def test_the_unit_of_the_reward_does_not_matter(tmp_path, settings):
    def lines(unit: float):
        made = scripted.trainer(
            tmp_path,
            critic="copy",
            reward_funcs=lambda completions, **columns: [unit * r for r in scripted.reward(completions)],
            kl_coef=0.05 * unit,
            total_episodes=24,
            **settings,
        )
        made.train()
        return scripted.logs(made)

    for one, hundred in zip(lines(1.0), lines(100.0), strict=True):
        for name in ("value_loss", "value_clip_fraction", "grad_norm", "critic_grad_norm", "explained_variance"):
            if name in one:
                assert hundred[name] == pytest.approx(one[name], rel=2e-3, abs=1e-5), name
        assert hundred["reward"] == pytest.approx(100 * one["reward"])
