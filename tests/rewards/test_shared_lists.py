# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A reward function that changes its arguments changes nothing for anybody else."""

import asyncio
import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch

from trl_ext.monitoring import observe_rollout
from trl_ext.rewards import PAR, Ensemble, LengthDebiased, RewardRunner, RunningNormalization, WeightedSum, check_reward
from trl_ext.rewards.base import Batch, fresh


def length(completions, **columns):
    return [float(len(completion)) for completion in completions]


def sorts(prompts, completions, completion_ids, topic, **columns):
    rewards = [float(len(completion)) for completion in completions]
    completions.sort(key=str)
    prompts.reverse()
    (completion_ids or [[]])[0].append(99)  # PAR's references have none
    topic.pop()
    return rewards


def clears(prompts, completions, completion_ids, **columns):
    n = len(completions)
    for values in (prompts, completions, completion_ids or [], *(v for v in columns.values() if isinstance(v, list))):
        values.clear()
    return [0.0] * n


async def sorts_later(completions, **columns):
    await asyncio.sleep(0.01)
    return sorts(completions=completions, **columns)


def edits(prompts, completions, tests, scores, grid, **columns):
    for prompt, completion, test in zip(prompts, completions, tests, strict=True):
        prompt[0]["content"] = completion[-1]["content"] = "edited"
        completion.append({"role": "assistant", "content": "more"})
        test["cases"][0][0] = -1
    scores *= 0
    for row in grid:
        row.zero_()
    return [0.0] * len(completions)


class Sees:
    """Keeps what it was called with."""

    __name__ = "sees"

    def __init__(self):
        self.calls: list[Any] = []

    def __call__(self, prompts, completions, completion_ids, topic, **columns):
        self.calls.append((list(prompts), list(completions), copy.deepcopy(completion_ids), list(topic)))
        return length(completions)


COMPLETIONS = ["ccc", "a", "bbbb"]
SEEN = (["p0", "p1", "p2"], COMPLETIONS, [[1], [2], [3]], ["x", "y", "z"])


@pytest.mark.parametrize("vandal", [sorts, clears, sorts_later])
@pytest.mark.parametrize(
    "around",
    [
        lambda vandal, sees: [vandal, sees],
        lambda vandal, sees: [WeightedSum([vandal, sees])],
        lambda vandal, sees: [Ensemble([vandal, RunningNormalization(sees)], "min")],
        lambda vandal, sees: [LengthDebiased(WeightedSum([vandal, vandal])), sees],
        lambda vandal, sees: [PAR(vandal, reference_column="topic"), sees],
    ],
    ids=["apart", "sum", "ensemble", "debiased", "par"],
)
def test_no_function_sees_what_another_has_changed(vandal, around):
    sees = Sees()
    given = copy.deepcopy(SEEN)
    scores = RewardRunner(around(vandal, sees))(given[0], given[1], given[2], {"topic": given[3]})
    assert sees.calls == [SEEN]
    assert given == SEEN  # which the trainer logs, saves and learns from
    assert scores.valid.all() and scores.per_function.shape[0] == 3


def test_combinations_outside_a_runner_protect_their_members_too():
    sees = Sees()
    given = copy.deepcopy(SEEN)
    for vandal in (sorts, clears, sorts_later):
        reward = WeightedSum([vandal, sees], [0.0, 1.0])
        assert reward(given[0], given[1], given[2], topic=given[3]) == [3, 1, 4]
    assert given == SEEN and sees.calls == [SEEN] * 3


def test_messages_arrays_and_tensors_are_copied_however_deep():
    prompts = [[{"role": "user", "content": [{"type": "text", "text": "q"}]}] for _ in range(2)]
    completions = [[{"role": "assistant", "content": "good"}] for _ in range(2)]
    columns = {
        "tests": [{"cases": [(1, 2), [3]]}, {"cases": [[4]]}],
        "scores": np.ones(2),
        "grid": [torch.ones(2), torch.ones(2)],
    }
    columns["tests"][0]["cases"] = [[1], [2]]
    before = copy.deepcopy((prompts, completions, columns["tests"]))
    texts = []

    def reads(completions, tests, **columns):
        texts.append([completion[-1]["content"] for completion in completions])
        return [float(test["cases"][0][0]) for test in tests]

    scores = RewardRunner([edits, reads])(prompts, completions, [[1]] * 2, columns)
    assert scores.per_function[:, 1].tolist() == [1, 4] and texts == [["good", "good"]]
    assert (prompts, completions, columns["tests"]) == before
    assert columns["scores"].sum() == 2 and columns["grid"][0].sum() == 2


def test_a_retry_starts_from_what_the_first_call_started_from():
    calls = []

    def clears_and_fails(completions, **columns):
        calls.append(list(completions))
        completions.clear()
        if len(calls) == 1:
            raise RuntimeError("no luck")
        return [1.0]

    scores = RewardRunner(clears_and_fails, backoff=0)(["p"] * 2, ["a", "b"], [[1]] * 2, {})
    assert calls == [["a", "b"], ["a"], ["b"]] and scores.total.tolist() == [1, 1]


def test_check_reward_tries_what_it_was_given():
    def clears_after(completions, **columns):
        rewards = length(completions)
        completions.clear()
        return rewards

    given = ["a", "bb"]
    with pytest.warns(UserWarning, match="pickled"):
        assert check_reward(clears_after, ["p", "q"], given).values == [1, 2]
    assert given == ["a", "bb"]


def test_images_are_not_copied():
    class Image:
        def __deepcopy__(self, memo):
            raise AssertionError("an image was copied")

        __copy__ = __deepcopy__

    images = [Image(), Image()]
    column = [[images[0]], {"image": images[1], "bytes": bytes(10)}]
    new = fresh(column)
    assert new[0][0] is images[0] and new[1]["image"] is images[1] and new[1]["bytes"] is column[1]["bytes"]
    assert new[0] is not column[0] and new[1] is not column[1]


def test_long_lists_of_numbers_cost_next_to_nothing():
    ids = [list(range(2000)) for _ in range(512)]
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event) if event == "call" else None)
    try:
        new = fresh(ids)
    finally:
        sys.setprofile(None)
    assert len(calls) < 10 * len(ids)  # none for each number
    new[0].append(1)
    assert len(ids[0]) == 2000


def test_watchers_of_a_rollout_get_batches_of_their_own():
    seen = []

    class Watches:
        def on_rollout(self, batch, scores, metrics, *, state, training):
            seen.append((list(batch.completions), scores.total.tolist(), dict(metrics)))
            batch.completions.clear()
            batch.columns["topic"].clear()
            scores.total.zero_()
            metrics["kl"] = 9.0
            return {"n": 1.0}

    batch = Batch(["p"], ["c"], [[1]], {"topic": ["x"]})
    scores, metrics = RewardRunner(length)(["p"], ["c"], [[1]], {}), {"kl": 1.0}
    assert observe_rollout([Watches(), Watches()], batch, scores, metrics, state=None, training=True) == {"n": 1.0}
    assert seen == [(["c"], [1.0], {"kl": 1.0})] * 2
    assert batch.completions == ["c"] and scores.total.tolist() == [1.0] and metrics == {"kl": 1.0}
