# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Asynchrony by one rollout: the weights and prompts of a rollout, what goes on meanwhile, what a failure leaves."""

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests import scripted
from tests.experience import copying_engine
from tests.experience.copying_engine import CopyingEngine
from tests.killed_runs import TIMING
from tests.tiny_models import tiny_tokenizer
from trl_ext.checkpoint import STATE
from trl_ext.experience.ahead import RolloutAhead
from trl_ext.experience.prompts import PLACEHOLDER, RolloutSampler
from trl_ext.folders import commit


def engine_of(made: Any) -> CopyingEngine:
    return made.generation_engine


def prompts_of(made: Any) -> list[list[list[int]]]:
    return [prompts for prompts, _ in engine_of(made).sampled]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("trl_ext-rollout")]


def with_tools() -> Dataset:
    """Conversations whose rows have different tools."""
    conversations = [[{"role": "user", "content": row["prompt"]}] for row in scripted.prompts(16)]
    tools = [[{"type": "function", "function": {"name": "look" * (i % 5)}}] for i in range(16)]
    return Dataset.from_dict({"prompt": conversations, "tools": tools})


def writes_tools() -> Any:
    """A tokenizer whose chat template writes the tools."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ tools }} {% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


class AfterStep(TrainerCallback):
    """Calls a function after each optimizer step, with the number of steps."""

    def __init__(self, function: Any):
        self.function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.function(state.global_step, control)


# ---- weights and prompts ----


def test_every_rollout_but_the_first_comes_from_the_weights_before_the_last_learning(tmp_path: Path) -> None:
    made = copying_engine.trainer(tmp_path)
    policies = {0: scripted.weights(made)}
    made.add_callback(AfterStep(lambda step, _: policies.update({step: scripted.weights(made)})))
    made.train()
    steps = made.args.steps_per_rollout
    assert len(engine_of(made).sampled) == 4 and not threads()
    for number, (_, weights) in enumerate(engine_of(made).sampled):
        older = policies[max(0, number - 1) * steps]
        same = [torch.equal(tensor, older[f"policy.{name}"]) for name, tensor in weights.items()]
        assert all(same), f"rollout {number}"
        if number > 1:
            assert not torch.equal(weights["model.norm.weight"], policies[number * steps]["policy.model.norm.weight"])
    lines = scripted.logs(made)
    assert [line["engine/staleness"] for line in lines] == [0.0] * steps + [float(steps)] * 3 * steps
    gaps = [line["engine/logp_gap"] for line in lines]
    assert gaps[0] < 1e-5 < 1e-3 < min(gaps[2 * steps :])
    assert lines[-1]["importance_weight"] != pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"total_episodes": 48},  # three epochs of two rollouts
        {"total_episodes": None, "num_train_epochs": 2},
        {"total_episodes": None, "max_steps": 5},  # the last rollout is not learned from to its end
        {"train_dataset": scripted.prompts(5), "total_episodes": 24},  # fewer prompts than a rollout has
        {"train_dataset": scripted.prompts(11).to_iterable_dataset(), "total_episodes": 24},
        {"train_dataset": with_tools(), "remove_unused_columns": True, "processing_class": writes_tools()},
        {"train_dataset": with_tools(), "processing_class": writes_tools()},
    ],
    ids=["epochs", "num_train_epochs", "max_steps", "few", "stream", "columns removed", "columns"],
)
def test_prompts_are_those_of_a_synchronous_run_and_none_is_sampled_in_vain(tmp_path: Path, settings: Any) -> None:
    settings = {"reward_funcs": lambda completions, **columns: [float(len(str(c))) for c in completions], **settings}
    runs = [copying_engine.trainer(tmp_path / str(on), async_rollouts=on, **settings) for on in (True, False)]
    for made in runs:
        made.train()
    assert prompts_of(runs[0]) == prompts_of(runs[1])
    staleness = [line["engine/staleness"] for line in scripted.logs(runs[0])]
    assert sum(s == 0 for s in staleness) == runs[0].args.steps_per_rollout, "every other rollout was sampled ahead"


def test_without_learning_a_run_is_the_synchronous_one(tmp_path: Path) -> None:
    lines, rows = [], scripted.prompts(32)  # of one epoch: at the beginning of each a dataloader draws a number
    for on in (True, False):
        made = copying_engine.trainer(tmp_path / str(on), async_rollouts=on, learning_rate=0.0, train_dataset=rows)
        made.train()
        lines.append(
            [
                {k: v for k, v in line.items() if not any(part in k for part in (*TIMING, "staleness"))}
                for line in scripted.logs(made)
            ]
        )
    assert lines[0] == lines[1] and len(lines[0]) == 8


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [7, 3, 20])
def test_the_sampler_says_beforehand_what_it_draws(shuffle: bool, size: int) -> None:
    sampler, drawn = RolloutSampler(20, size, 2, shuffle=shuffle, seed=5), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        drawn += [index for index in sampler if index != PLACEHOLDER]
    rollouts = [sampler.rollout(number) for number in range(3 * sampler.num_rollouts)]
    assert sum(rollouts, []) == drawn and {len(rollout) for rollout in rollouts} == {size}


# ---- what goes on meanwhile ----


def test_the_policy_learns_while_the_next_rollout_is_sampled(tmp_path: Path) -> None:
    """Sampling of the second rollout waits until the first has been learned from; that wait is what is logged."""
    made = copying_engine.trainer(tmp_path, total_episodes=16)
    engine, seen = engine_of(made), []

    def after(step: int, _: Any) -> None:
        seen.append(threads())
        if step == made.args.steps_per_rollout:
            threading.Timer(0.5, engine.go.set).start()

    made.add_callback(AfterStep(after))
    engine.holds = True
    made.train()
    assert seen[:2] == [["trl_ext-rollout-ahead"]] * 2 and not threads()
    waited = [line["time/generate"] for line in scripted.logs(made)]
    assert waited[-1] >= 0.4


def test_an_evaluation_has_the_present_weights_and_leaves_the_rollout_alone(tmp_path: Path) -> None:
    """Also with the prompts of the rollout that is being sampled."""
    settings: dict[str, Any] = {"train_dataset": scripted.prompts(8), "shuffle_dataset": False, "total_episodes": 24}
    alone = copying_engine.trainer(tmp_path / "alone", **settings)
    alone.train()
    evaluation = {"eval_dataset": scripted.prompts(8), "per_device_eval_batch_size": 8, "policy_ema_decay": 0.5}
    made = copying_engine.trainer(tmp_path / "both", eval_strategy="steps", eval_steps=1, **evaluation, **settings)
    policies: list[Any] = []
    made.add_callback(AfterStep(lambda step, _: policies.append(scripted.weights(made))))
    made.train()
    for name, tensor in scripted.weights(alone).items():
        assert torch.equal(tensor, scripted.weights(made)[name]), name
    sampled = engine_of(made).sampled
    assert len(sampled) == 3 + 2 * 6, "of each evaluation the policy and its average"
    norms = [weights["model.norm.weight"] for _, weights in sampled]
    for policy in policies:
        assert any(torch.equal(norm, policy["policy.model.norm.weight"]) for norm in norms)
    evaluated = [line for line in made.state.log_history if "eval_reward" in line]
    assert len(evaluated) == 6 and all(line["eval_engine/logp_gap"] < 1e-5 for line in evaluated)
    assert not any("eval_engine/staleness" in line for line in evaluated)


# ---- failures and ends ----


def test_a_failure_of_the_engine_ends_the_run_with_its_sentence_and_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    made = copying_engine.trainer(tmp_path, **settings)
    engine = engine_of(made)
    engine.failure = (3, ConnectionError("The vLLM server does not answer."))
    with pytest.raises(ConnectionError, match=r"^The vLLM server does not answer\.$"):
        made.train()
    assert made.state.global_step == 4 and not threads() and engine.closed == 1
    assert not (tmp_path / "checkpoint-4" / "next_rollout_0.json").exists()
    assert (tmp_path / "checkpoint-2" / "next_rollout_0.json").exists()
    again = copying_engine.trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert [line["engine/staleness"] for line in scripted.logs(again)][-4:] == [0, 0, 2, 2]


def test_ctrl_c_and_an_early_end_leave_no_thread(tmp_path: Path) -> None:
    def interrupt(step: int, control: Any) -> None:
        raise KeyboardInterrupt

    def stop(step: int, control: Any) -> None:
        control.should_training_stop = True

    for name, end in (("interrupt", interrupt), ("stop", stop)):
        made = copying_engine.trainer(tmp_path / name)
        engine = engine_of(made)
        made.add_callback(AfterStep(end))
        engine.holds = True
        start = time.monotonic()
        if name == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                made.train()
        else:
            made.train()
        assert not threads() and engine.closed == 1 and time.monotonic() - start < 60
        engine.holds = False
        made.callback_handler.callbacks.pop()
        made.train()  # anew
        assert made.state.global_step == 8


def forget(checkpoint: Path, setting: str) -> None:
    """Let a checkpoint not know a setting that it was written with."""
    state = json.loads((checkpoint / STATE).read_text())
    del state["configuration"][setting]
    (checkpoint / STATE).write_text(json.dumps(state))
    commit(checkpoint)


def test_a_run_resumed_synchronously_or_with_other_prompts_samples_anew(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "shuffle_dataset": False}
    made = copying_engine.trainer(tmp_path / "first", **settings)
    made.train()
    ahead = json.loads((tmp_path / "first" / "checkpoint-4" / "next_rollout_0.json").read_text())
    assert ahead["prompt_ids"] == prompts_of(made)[2] and ahead["step"] == 2
    for name, other in {"off": {"async_rollouts": False}, "order": {"shuffle_dataset": True}, "same": {}}.items():
        shutil.copytree(tmp_path / "first" / "checkpoint-4", tmp_path / name / "checkpoint-4")
        if name == "order":  # only a checkpoint of an earlier version goes on with another one
            forget(tmp_path / name / "checkpoint-4", "shuffle_dataset")
        again = copying_engine.trainer(tmp_path / name, **{**settings, **other})
        again.train(resume_from_checkpoint=True)
        assert len(prompts_of(again)) == (1 if name == "same" else 2)
        lines = scripted.logs(again)[4:]
        if name == "off":
            assert prompts_of(again) == prompts_of(made)[2:] and lines[0]["engine/logp_gap"] < 1e-5
        elif name == "order":
            assert prompts_of(again)[0] != prompts_of(made)[2] and [x["engine/staleness"] for x in lines] == [
                0,
                0,
                2,
                2,
            ]
        else:
            assert all(torch.equal(t, scripted.weights(made)[n]) for n, t in scripted.weights(again).items())


def test_an_engine_that_cannot_sample_meanwhile_is_refused(tmp_path: Path) -> None:
    made = copying_engine.trainer(tmp_path)
    made.generation_engine = scripted.ScriptedEngine()
    with pytest.raises(
        ValueError, match="^`async_rollouts` needs an engine with a method `prepare`, and ScriptedEngine"
    ):
        made.train()


def test_a_rollout_that_nobody_wants_ends_at_its_next_completion() -> None:
    ended = threading.Event()

    class Endless:
        def prepare(self, model, prompt_ids):
            def sample(on_progress):
                try:
                    while not ended.wait(0.01):
                        on_progress(1, 1)
                finally:
                    ended.set()

            return sample

    ahead = RolloutAhead(True)
    ahead.begin(Endless(), None, [[1]], 0)
    assert ahead.take([[2]], 1, lambda *_: None) is None, "completions of other prompts do not count"
    is_over = ended.wait(5)
    ended.set()
    assert is_over
