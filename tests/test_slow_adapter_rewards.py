# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Rewards that are adapters on the policy's base never run beside the policy."""

import functools
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification

from tests import scripted
from tests.actor_critic.makes import batch, scramble
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_tokenizer
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.rewards import Ensemble, LengthDebiased, PreferenceReward, RewardRunner, WeightedSum
from trl_ext.rewards.sharing import reads_any, shares_base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("base"), tiny_causal_lm())


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("reward")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(r=4, target_modules="all-linear", task_type=TaskType.SEQ_CLS, modules_to_save=["score"])
    model = get_peft_model(model, config)
    scramble(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def actor_critic(base: str, adapter: str) -> ActorCritic:
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear")
    made = build_actor_critic(base, peft_config=lora, reward_adapters=[adapter], sum_reward_models=False)
    scramble(made, scale=0.05)
    return made


def adapter_reward(model: ActorCritic) -> PreferenceReward:
    """The reward as a function by itself, which the trainer does not add again."""
    judge = model.reward_models[0]
    return PreferenceReward(judge, tokenizer=tiny_tokenizer(), name="adapter")  # type: ignore[arg-type]


def trainer(folder: Path, model: ActorCritic, reward: Any, **settings: Any):
    return scripted.trainer(folder, model=model, reward_funcs=[reward], total_episodes=8, **settings)


WAYS: dict[str, Any] = {
    "itself": lambda reward: reward,
    "in combinations": lambda reward: WeightedSum([LengthDebiased(reward), scripted.reward]),
    "in an ensemble": lambda reward: Ensemble([scripted.reward, reward]),
}


@pytest.mark.parametrize(("summed", "names"), [(False, ["reward"]), (True, ["reward", "adapter"])])
def test_the_trainer_sums_reward_models_only_if_asked(base, adapter, tmp_path, summed, names):
    model = actor_critic(base, adapter)
    model.sum_reward_models = summed
    model.reward_models[0].name_or_path = "adapter"
    made = trainer(tmp_path, model, scripted.reward)
    assert made.rewards.names == names


def trained(folder: Path, base: str, adapter: str, way: str, *, slow: bool, timeout: float | None):
    """One rollout; the first forward pass of the reward takes half a second, with its adapter on."""
    model = actor_critic(base, adapter)
    made = trainer(folder, model, WAYS[way](adapter_reward(model)), reward_timeout=timeout)
    waits = [0.5] if slow else []

    def wait(*_: Any) -> None:
        layer = next(module for module in model.policy.modules() if hasattr(module, "lora_A"))
        if waits and layer.active_adapters == ["reward0"]:
            time.sleep(waits.pop())

    model.causal_lm.base_model.layers[1].register_forward_pre_hook(wait)
    made.train()
    assert not waits
    return made


@pytest.mark.parametrize("way", WAYS)
def test_a_timeout_leaves_adapter_rewards_alone(base, adapter, way, tmp_path):
    expected = trained(tmp_path, base, adapter, way, slow=False, timeout=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = trained(tmp_path, base, adapter, way, slow=True, timeout=0.05)
    [told] = [str(w.message) for w in caught if "reward" in str(w.message)]
    assert told.startswith(f"`reward_timeout` does not apply to reward function '{got.rewards.names[0]}', which runs")
    for name, value in scripted.weights(expected).items():
        assert torch.equal(value, scripted.weights(got)[name]), name


def test_other_functions_are_still_timed(base, adapter, tmp_path):
    def slow(completions, **columns):
        time.sleep(0.5)
        return scripted.reward(completions)

    model = actor_critic(base, adapter)
    reward = WeightedSum([adapter_reward(model), slow])
    with pytest.warns(UserWarning, match=r"does not apply to .* 'weighted_sum', .* \(by its member 'adapter'\)"):
        made = trainer(tmp_path, model, reward, reward_timeout=0.05, reward_retries=0)
    with pytest.raises(RuntimeError, match="timeout: no result within 0.05 s"):
        made.train()


def test_what_needs_the_policy_waits_for_what_runs_an_adapter(base, adapter):
    """Another thread is in the middle of the reward's forward pass when the policy is asked."""
    model, data = actor_critic(base, adapter), batch()
    with torch.no_grad():
        expected = model(*data)
        inside, done, order = threading.Event(), [], []

        def who() -> str:
            return "policy" if threading.current_thread() is threading.main_thread() else "reward"

        def wait(*_: Any) -> None:
            order.append(f"{who()} begins")
            if who() == "reward" and not inside.is_set():
                inside.set()
                time.sleep(0.3)

        trunk = model.causal_lm.base_model
        handle = trunk.layers[1].register_forward_pre_hook(wait)
        end = trunk.register_forward_hook(lambda *_: order.append(f"{who()} ends"))

        def score() -> None:
            done.append(adapter_reward(model)(["the cat"], [" sat"]))

        thread = threading.Thread(target=score)
        thread.start()
        assert inside.wait(10)
        got = model(*data)
        thread.join()
        assert order[0] == "reward begins" and "policy begins" in order
        # Neither begins before the other has ended, however often the reward model is called.
        assert [begin.replace("begins", "ends") for begin in order[::2]] == order[1::2]
        handle.remove()
        end.remove()
        assert torch.equal(got.logps, expected.logps)
        with model.hold():  # and the other way round
            thread = threading.Thread(target=score)
            thread.start()
            thread.join(0.2)
            assert thread.is_alive() and len(done) == 1
            assert torch.equal(model(*data).logps, expected.logps)
        thread.join(10)
        assert done[0] == done[1]


def test_models_that_share_weights_with_the_policy_are_found(base, adapter):
    model = actor_critic(base, adapter)
    other = tiny_causal_lm()
    policy = model.policy
    own = frozenset(map(id, model.parameters()))
    preference = adapter_reward(model)

    class Judge:
        def __init__(self, model):
            self.parts = {"model": [model]}

        def __call__(self, completions, **columns):
            return [0.0] * len(completions)

        def method(self, completions, **columns):
            return [0.0] * len(completions)

    def closes_over(completions, **columns):
        return [float(policy.dtype == torch.float32)] * len(completions)

    def takes(completions, *, judge=None, **columns):
        return [0.0] * len(completions)

    shared = [preference, Judge(policy), Judge(policy.base_model.model.model), Judge(policy).method, closes_over]
    shared += [functools.partial(takes, judge=policy), lambda completions, **columns: preference([""], completions)]
    for fn in shared:
        assert shares_base(fn) or reads_any(fn, own)
        with pytest.warns(UserWarning, match="`reward_timeout` does not apply"):
            RewardRunner(fn, timeout=1.0, policy=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        others = [Judge(other), Judge(other).method, functools.partial(takes, judge=other)]
        RewardRunner(others, timeout=1.0, policy=model)
        RewardRunner(shared, policy=model)
