# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The critic's pretraining: which weights are kept, what is written, and that a later run starts from it."""

import json

import pytest
import torch

from tests import scripted
from tests.critic_learning.test_learner import actor_critic, learner, rollout, weights
from tests.two_threads import on_two
from trl_ext.critic_learning import pretraining
from trl_ext.critic_learning.held_out import explained_on_held_out
from trl_ext.monitoring import PhaseProgress

SETTINGS = {
    "critic": "copy",
    "critic_pretraining_episodes": 30,
    "critic_pretraining_epochs": 3,
    "critic_pretraining_learning_rate": 3e-3,
    "critic_held_out": 0.4,
}


@pytest.mark.parametrize(
    ("explained", "kept", "passes"),
    [([0.0, 0.1, 0.3, 0.2, 0.1], 2, 4), ([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 5, 5), ([0.4, 0.3, 0.2], 0, 2)],
)
def test_the_best_pass_is_kept_and_two_worse_ones_are_the_end(monkeypatch, explained, kept, passes):
    model, seen = actor_critic(), []
    answers = iter(explained)

    def measure(made, rollouts):
        seen.append(weights(model))
        return {"explained_variance": next(answers)}

    monkeypatch.setattr(pretraining, "explained_on_held_out", measure)
    report = pretraining.fit(learner(model), [rollout()], epochs=5, seed=0, progress=PhaseProgress(False))
    assert report["epoch"] == kept and len(report["epochs"]) == passes
    assert all(torch.equal(p, seen[kept][name]) for name, p in model.named_parameters())


def test_the_learning_rate_falls_to_nothing_and_the_order_has_a_seed():
    rates, made = [], learner(actor_critic(), rate=1.0)
    made.learn = lambda rollout, epochs, seed, on_step: (
        [(on_step(), rates.append(made.optimizer.param_groups[0]["lr"])) for _ in range(2)] and {"value_loss": 1.0}
    )
    pretraining.fit(made, [rollout(), rollout()], epochs=2, seed=0, progress=PhaseProgress(False))
    assert rates == [1 - i / 8 for i in range(8)]


def test_every_pass_over_a_rollout_has_an_order_of_its_own():
    """The order of the rollouts, and the seed of the order of the completions in each."""

    def passes(seed):
        made, rollouts, seen = learner(actor_critic()), [rollout() for _ in range(4)], []
        for samples in rollouts:
            samples.held_out[:] = False  # nothing ends the passes early
        made.learn = lambda samples, epochs, of, on_step: (
            seen.append((next(i for i, r in enumerate(rollouts) if r is samples), of)) or {"value_loss": 1.0}
        )
        pretraining.fit(made, rollouts, epochs=3, seed=seed, progress=PhaseProgress(False))
        return seen

    seen = passes(0)
    orders = {tuple(i for i, _ in seen[start : start + 4]) for start in (0, 4, 8)}
    assert len(orders) > 1 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({of for _, of in seen}) == 12 and passes(0) == seen
    assert not {of for _, of in passes(1)} & {of for _, of in seen}


def test_training_begins_with_the_pretraining_and_a_resumed_run_does_not(tmp_path):
    made = scripted.trainer(tmp_path, critic_epochs=1, save_strategy="steps", save_steps=2, **SETTINGS)
    made.train()
    report = json.loads((tmp_path / "critic_pretraining.json").read_text())
    assert report["episodes"] == 32 and report["completions"] > 2 and len(report["epochs"]) == 3
    lines = [line for line in made.state.log_history if "critic_pretraining/value_loss" in line]
    assert [line["critic_pretraining/epoch"] for line in lines] == [1, 2, 3]
    assert made.pretrain_critic() == report, "once"
    assert not made._pretraining.learner.optimizer.state, "no memory is held during PPO"
    again = scripted.trainer(tmp_path, critic_epochs=1, save_strategy="steps", save_steps=2, **SETTINGS)
    again.collector.collect_for_critic = lambda *a, **k: pytest.fail("pretrained a second time")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(p, weights(again.model)[name]) for name, p in made.model.named_parameters())


def test_stateful_rewards_take_note_and_the_kl_controller_does_not(tmp_path):
    class Counted:
        def __init__(self):
            self.calls, self.__name__ = [], "counted"

        def __call__(self, completions, **columns):
            self.calls.append(len(completions))
            return scripted.reward(completions)

        def state_dict(self):
            return {"calls": list(self.calls)}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    counted = Counted()
    made = scripted.trainer(tmp_path, reward_funcs=counted, kl_controller="pid", kl_target=1.0, **SETTINGS)
    state, policy = made.kl_controller.state_dict(), {n: p.clone() for n, p in made.model.actor_parameters()}
    made.pretrain_critic()
    assert all(torch.equal(p, policy[name]) for name, p in made.model.actor_parameters())
    assert counted.calls == [8] * 4 and made.kl_controller.state_dict() == state
    assert made.model.return_scale.weight == 1 and made.model.return_scale.std != 1


def test_a_second_run_with_another_kl_target_starts_where_the_first_critic_ended(tmp_path):
    first = scripted.trainer(tmp_path / "first", critic_epochs=2, **SETTINGS)
    first.train()
    first.save_model(str(tmp_path / "first"))
    second = scripted.trainer(
        tmp_path / "second", critic=str(tmp_path / "first"), critic_epochs=2, kl_controller="pid", kl_target=0.5
    )
    samples = rollout(24)
    samples.returns, samples.held_out[:] = torch.randn(24, 4) * samples.completion_mask, True
    ends = [explained_on_held_out(learner(made.model), [samples]) for made in (first, second)]
    assert ends[0] == ends[1] and ends[0]["explained_variance"] != 0
    assert second.model.return_scale.state_dict() == first.model.return_scale.state_dict()
    assert not second.critic_learner.optimizer.state, "its moments are new"


def test_a_prompt_of_the_training_data_is_drawn_once_before_any_is_drawn_twice(tmp_path):
    made = scripted.trainer(tmp_path, **SETTINGS)
    batches = made._pretraining._batches()
    assert [len(batch) for batch in batches] == [8] * 4
    assert sorted(sum(batches[:2], [])) == sorted(sum(batches[2:], [])) == list(range(16))


@pytest.mark.parametrize(("prompts", "episodes"), [(1, 1), (3, 2), (3, 20), (5, 8)])
def test_every_batch_is_whole_where_there_are_fewer_prompts_than_completions_in_it(tmp_path, prompts, episodes):
    made = scripted.trainer(tmp_path, **SETTINGS | {"critic_pretraining_episodes": episodes})._pretraining
    made.dataset = list(range(prompts))
    batches = made._batches()
    assert [len(batch) for batch in batches] == [8] * -(-episodes // 8)
    counts = [sum(batches, []).count(i) for i in range(prompts)]
    assert min(counts) > 0 and max(counts) - min(counts) <= 1


def test_two_processes_share_the_batches_of_one_and_set_the_scale_that_one_would(tmp_path):
    class Rows(list):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    def made(number, processes):
        options = pretraining.PretrainingOptions(
            critic_pretraining_episodes=12,
            critic_pretraining_epochs=1,
            scales_returns=True,
            seed=3,
            local_batch_size=6 // processes,
            world_size=processes,
            process_index=number,
            output_dir=str(tmp_path),
            should_save=False,
        )
        return pretraining.CriticPretraining(learner(actor_critic()), lambda *a, **k: None, Rows(range(12)), options)

    one, *two = (list(made(*which)._rows()) for which in ((0, 1), (0, 2), (1, 2)))
    assert [first + second for first, second in zip(*two, strict=True)] == one

    samples, learners = rollout(), [learner(actor_critic()) for _ in range(2)]
    learners[0].model.return_scale.weight.fill_(1.0)  # what was there before is forgotten

    def scale(number, reduce):
        learners[number].reduce = reduce
        pretraining.set_scale(learners[number], [samples.select(torch.tensor([[0, 3, 7], [1, 2, 4, 5, 6]][number]))])
        found = learners[number].model.return_scale
        return found.mean.item(), found.std.item()

    returns = samples.returns[samples.completion_mask]
    assert on_two(scale) == [pytest.approx((returns.mean().item(), returns.std(correction=0).item()))] * 2
