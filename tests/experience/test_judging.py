# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Judges and metrics of evaluations: what they are given, what is logged, and that training does not notice them."""

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests import scripted
from tests.launching import run_whole, torchrun
from tests.tiny_models import save_tiny, tiny_classifier, tiny_tokenizer
from trl_ext.experience.judging import Judging, check_best_metric
from trl_ext.rewards import LengthReward, RewardRunner
from trl_ext.rewards.base import Batch
from trl_ext.rewards.retry import BACKOFF_SECONDS


def words(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


def every_second(completions: list[str], **columns: Any) -> list[float | None]:
    return [None if i % 2 else 1.0 for i in range(len(completions))]


async def letters(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def draws(completions: list[str], **columns: Any) -> list[float]:
    """Takes random numbers from every generator that there is."""
    return [random.random() + float(np.random.rand()) + float(torch.rand(())) for _ in completions]


def evaluations(made: Any) -> list[dict[str, float]]:
    return [
        line
        for line in made.state.log_history
        if any(name.endswith("_runtime") and name.startswith("eval") for name in line)
    ]


def test_judges_are_logged_and_called_at_evaluations_alone(tmp_path):
    seen: list[int] = []

    def judge(prompts, completions, completion_ids, source, **columns):
        seen.append(len(completions))
        assert set(source) <= {"web", "books"} and len(completion_ids) == len(prompts)
        return words(completions)

    made = scripted.trainer(
        tmp_path,
        eval_dataset=scripted.prompts(6).add_column("source", ["web", "books"] * 3),
        train_dataset=scripted.prompts(16),
        eval_reward_funcs=[judge, every_second, letters],
        eval_strategy="no",
        per_device_eval_batch_size=4,
    )
    made.train()
    assert not seen and not any("judge" in name for line in made.state.log_history for name in line)
    metrics = made.evaluate()
    assert seen == [4, 2]
    lengths = []

    def remember(completions):
        lengths.extend(words(completions))
        return {"longest": max(lengths)}

    made.judging.compute_metrics = remember
    again = made.evaluate()
    assert again["eval_longest"] == max(lengths) and len(lengths) == 6
    for found in (metrics, again):
        assert found["eval_judge/judge/mean"] == pytest.approx(statistics.fmean(lengths))
        assert found["eval_judge/judge/std"] == pytest.approx(statistics.pstdev(lengths))
        assert found["eval_judge/every_second/mean"] == 1.0 and found["eval_judge/letters/mean"] > 0
    assert again["eval_time/judge"] >= 0


class Counting:
    """A judge with a state: how many completions it has seen."""

    seen = 0

    def __call__(self, completions, **columns):
        self.seen += len(completions)
        return [float(self.seen)] * len(completions)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_a_judge_never_changes_training(tmp_path):
    """Bit for bit, also where judges draw random numbers and keep state; another seed shows that the test can fail."""
    finals = []
    for name, judges in (("without", None), ("with", [draws, Counting()]), ("other seed", None)):
        made = scripted.trainer(
            tmp_path / name,
            scripted=False,
            reward_funcs=lambda completions, **_: [random.random() + float(np.random.rand()) for _ in completions],
            eval_dataset=scripted.prompts(5),
            eval_strategy="steps",
            eval_steps=1,
            eval_reward_funcs=judges,
            compute_metrics=(lambda completions: {"drawn": random.random()}) if judges else None,
            seed=7 if name == "other seed" else 3,
        )
        made.train()
        assert len(evaluations(made)) == 4 and ("eval_drawn" in evaluations(made)[0]) == bool(judges)
        finals.append(scripted.weights(made))
    without, judged, other = finals
    assert all(torch.equal(without[name], judged[name]) for name in without)
    assert any(not torch.equal(without[name], other[name]) for name in without)


def test_judges_choose_the_best_model_and_another_judge_does_not_refuse_a_resume(tmp_path):
    settings: dict[str, Any] = {
        "eval_dataset": {"short": scripted.prompts(4), "long": scripted.prompts(3)},
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_long_judge/words/mean",
        "bf16": True,
    }
    made = scripted.trainer(tmp_path, eval_reward_funcs=words, **settings)
    made.train()
    assert made.state.best_metric == evaluations(made)[-1]["eval_long_judge/words/mean"]
    assert "eval_short_judge/words/mean" in evaluations(made)[0]
    settings["metric_for_best_model"] = "eval_long_judge/letters/mean"
    resumed = scripted.trainer(tmp_path, eval_reward_funcs=[letters, words], total_episodes=32, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8 and "eval_long_judge/letters/mean" in evaluations(resumed)[-1]


def test_failures_are_retried_and_a_judge_that_fails_on_every_sample_is_named(tmp_path):
    calls = []

    def flaky(completions, **columns):
        calls.append(len(completions))
        if len(calls) == 1:
            raise ConnectionError("busy")
        return [1.0] * len(completions)

    def broken(completions, **columns):
        calls.append(0)
        if calls.count(0) > 1:
            raise ConnectionError("gone")
        return [5.0] * len(completions)

    made = scripted.trainer(
        tmp_path,
        eval_dataset=scripted.prompts(4),
        eval_reward_funcs=flaky,
        reward_backoff=0.0,
        per_device_eval_batch_size=2,
    )
    assert made.evaluate()["eval_judge/flaky/mean"] == 1.0 and len(calls) > 1
    made.judging.judges = RewardRunner([broken], retries=0, backoff=min(0.0, BACKOFF_SECONDS))
    with pytest.raises(RuntimeError, match="'broken' failed"):
        made.evaluate()
    made.judging.judges = RewardRunner([flaky])
    assert made.evaluate()["eval_judge/flaky/mean"] == 1.0  # nothing is left of the evaluation that failed


def test_what_a_judge_does_wrong_is_said_of_a_judge(tmp_path):
    def broken(completions, **columns):
        raise ConnectionError("gone")

    def short(completions, **columns):
        return [1.0]

    def sometimes(completions, **columns):
        return [ConnectionError("busy"), *[1.0] * (len(completions) - 1)]

    settings = {"eval_dataset": scripted.prompts(4), "reward_retries": 0, "per_device_eval_batch_size": 4}
    with pytest.raises(RuntimeError, match="^Judge 'broken' failed on at least"):
        scripted.trainer(tmp_path, eval_reward_funcs=broken, **settings).evaluate()
    with pytest.raises(ValueError, match="^Judge 'short' returned 1 rewards for 4 completions"):
        scripted.trainer(tmp_path, eval_reward_funcs=short, **settings).evaluate()
    with pytest.warns(UserWarning, match="^Judge 'sometimes' failed on 1 of 4 samples"):
        scripted.trainer(tmp_path, eval_reward_funcs=sometimes, max_reward_failures=0.5, **settings).evaluate()


def test_a_reward_model_by_name_judges_conversations(tmp_path):
    judge = save_tiny(tmp_path / "judge", tiny_classifier(labels=["reward"], arch="llama"))
    rows = [[{"role": "user", "content": f"hello {i}"}] for i in range(3)]
    made = scripted.trainer(
        tmp_path,
        reward_funcs=lambda completions, **_: [float(len(message[0]["content"])) for message in completions],
        processing_class=tiny_tokenizer(chat_template=True),
        train_dataset=Dataset.from_dict({"prompt": rows * 6}),
        eval_dataset=Dataset.from_dict({"prompt": rows}),
        eval_reward_funcs=judge,
        compute_metrics=lambda completions, prompts: {"turns": np.float32(len(completions[0]) + len(prompts[0]))},
    )
    metrics = made.evaluate()
    assert math.isfinite(metrics["eval_judge/judge/mean"]) and metrics["eval_turns"] == 2.0


def test_samples_of_several_processes_are_put_in_order(monkeypatch):
    """Five rows in batches of two: process 0 has [0, 1] and [4], process 1 has [2, 3] and nothing."""

    def batch(*rows):
        return Batch([f"p{i}" for i in rows], [f"c{i}" for i in rows], [[i] for i in rows], {"row": list(rows)})

    found = []

    def compute(prompts, completions, completion_ids, row):
        found.append((row, prompts, completion_ids))
        return {"count": len(completions), "torch": torch.tensor(2.5)}

    def value(row, **columns):
        return [10.0 * i for i in row]

    other = Judging(RewardRunner([value]), compute)
    for rows in ((2, 3), ()):
        other.add(batch(*rows), None)
    mine = Judging(RewardRunner([value]), compute)
    for rows in ((0, 1), (4,)):
        mine.add(batch(*rows), None)
    theirs = other._parts
    monkeypatch.setattr(
        "trl_ext.experience.judging.gather", lambda own: [own, theirs] if isinstance(own, list) else [own, {}]
    )
    metrics = mine.take("eval_a", is_main=True)
    assert found == [([0, 1, 2, 3, 4], ["p0", "p1", "p2", "p3", "p4"], [[0], [1], [2], [3], [4]])]
    assert metrics["eval_a_judge/value/mean"] == 20.0 and metrics["eval_a_judge/value/std"] == pytest.approx(200**0.5)
    assert metrics["eval_a_count"] == 5.0 and metrics["eval_a_torch"] == 2.5
    assert mine.take("eval", is_main=False)["eval_time/judge"] == 0.0 and len(found) == 1


def test_two_processes_judge_every_row_once_and_agree(tmp_path):
    """Five rows in batches of two on two processes, of which three rows come twice."""
    run_whole(Path(__file__).with_name("judged_by_two.py"), tmp_path)
    found = [json.loads((tmp_path / f"process_{rank}.json").read_text()) for rank in (0, 1)]
    assert len(found[0]["history"]) == len(found[1]["history"]) == 4
    for line, other in zip(found[0]["history"], found[1]["history"], strict=True):
        own = {k: v for k, v in line.items() if "judge/" in k and "time" not in k or k.endswith(("_rows", "_rank"))}
        assert own.items() <= other.items() and len(own) == 4
        name = "eval_a" if "eval_a_rows" in line else "eval_b"
        assert (line[f"{name}_judge/number/mean"], line[f"{name}_rows"], line[f"{name}_rank"]) == (1.75, 5, 0)
    assert found[0]["calls"] == [[0, 1, 2, 3, 4]] * 4 and found[1]["calls"] == [[]]
    assert found[0]["best"] == found[1]["best"] == 1.75


def test_a_bug_in_compute_metrics_ends_both_processes(tmp_path):
    done = torchrun(Path(__file__).with_name("judged_by_two.py"), tmp_path / "broken")
    assert done.returncode != 0 and "a bug in compute_metrics" in done.stderr
    assert "`compute_metrics` failed on process 0 (ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    ("result", "error", "part"),
    [
        ([1.0], TypeError, r"returned \[1.0\]; return numbers by name"),
        ({"accuracy": "high"}, TypeError, "returned 'high' as 'accuracy'"),
        ({"accuracy": None}, TypeError, "returned None as 'accuracy'"),
        ({"accuracy": [1.0, 2.0]}, TypeError, "as 'accuracy'; return a number"),
        ({"reward": 1.0}, ValueError, "returned 'reward', a metric of the trainer"),
        ({"eval_kl": 1.0}, ValueError, "returned 'kl', a metric of the trainer"),
    ],
)
def test_what_is_no_metric_is_refused(result, error, part):
    judging = Judging(None, lambda completions: result)
    judging.add(Batch(["p"], ["c"], [[1]]), None)
    with pytest.raises(error, match=part):
        judging.take("eval", is_main=True)


def of_logits(eval_pred):
    return {}


@pytest.mark.parametrize(
    ("settings", "error", "part"),
    [
        ({"compute_metrics": of_logits}, TypeError, "asks for 'eval_pred', which is no column of `eval_dataset`"),
        ({"compute_metrics": lambda p, /: {}}, TypeError, "asks for 'p'"),
        ({"compute_metrics": letters}, TypeError, "must be a plain function"),
        ({"compute_metrics": "accuracy"}, TypeError, "must be a plain function"),
        ({"eval_reward_funcs": LengthReward}, TypeError, "`eval_reward_funcs` has the class LengthReward"),
        ({"eval_reward_funcs": 3}, TypeError, "`eval_reward_funcs` must be functions, reward models or their names"),
        ({"eval_reward_funcs": "/nowhere"}, ValueError, "/nowhere"),
        (
            {"eval_reward_funcs": words, "metric_for_best_model": "eval_judge/word/mean"},
            ValueError,
            "is not measured: did you mean `eval_judge/words/mean`",
        ),
        ({"metric_for_best_model": "judge/words/mean"}, ValueError, "give `eval_reward_funcs`"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(settings, error, part, tmp_path):
    with pytest.raises(error, match=part):
        scripted.trainer(tmp_path, model="/no/model", eval_dataset=scripted.prompts(4), **settings)


def test_names_of_best_metrics():
    check_best_metric("eval_monitor/gold", [], [])
    check_best_metric("judge/a/mean", ["a"], [])
    check_best_metric("eval_long_judge/a/std", ["a"], ["short", "long"])
    with pytest.raises(ValueError, match="eval_long_judge/b/mean' *, which is not measured"):
        check_best_metric("eval_long_judge/b/mean", ["a"], ["short", "long"])


def test_doubtful_judges_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="`eval_reward_funcs` has no effect without `eval_dataset`"):
        scripted.trainer(tmp_path, eval_reward_funcs=words)
    with pytest.warns(UserWarning, match="has 'reward', which `reward_funcs` trains on"):
        scripted.trainer(tmp_path, eval_dataset=scripted.prompts(4), eval_reward_funcs=[scripted.reward])
