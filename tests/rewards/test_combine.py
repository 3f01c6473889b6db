# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import asyncio
import json
import math
import multiprocessing
import pickle
import statistics
from typing import Any

import numpy as np
import pytest
import torch

from trl_ext.rewards import (
    PAR,
    Clipped,
    Ensemble,
    LengthReward,
    LogSigmoid,
    RewardRunner,
    RunningNormalization,
    WeightedSum,
)


def value(completions, **columns):
    """The completion is the reward; an empty one has none."""
    return [float(completion) if completion else None for completion in completions]


def double(completions, **columns):
    return [2 * float(completion) if completion else None for completion in completions]


async def slow_value(completions, **columns):
    await asyncio.sleep(0.01)
    return value(completions)


def score(reward, *completions, **columns):
    texts = [str(completion) for completion in completions]
    return reward([""] * len(texts), texts, [[1]] * len(texts), **columns)


def test_weighted_sum_leaves_out_what_does_not_apply():
    def only_first(completions, **columns):
        return [10.0] + [None] * (len(completions) - 1)

    reward = WeightedSum([value, double, only_first], [1.0, -0.25, 0.5])
    assert score(reward, 4, 2, "") == [4 - 2 + 5, 2 - 1, None]
    assert score(WeightedSum([value, double]), 1) == [3.0]
    with pytest.raises(ValueError, match="1 weights for 2"):
        WeightedSum([value, double], [1.0])


def test_clipped():
    assert score(Clipped(value, -1, 2), -5, 0.5, 7, "") == [-1, 0.5, 2, None]
    assert score(Clipped(value, high=2), -5, 7) == [-5, 2]
    for limits in ({}, {"low": 2, "high": 1}):
        with pytest.raises(ValueError, match="low <= high"):
            Clipped(value, **limits)


def test_log_sigmoid():
    reward = LogSigmoid(value, center=1.0, scale=2.0)
    # log 1/2; log(1/(1+1/e)); no overflow far out
    assert score(reward, 1, 3, -1999, 9999, "") == [
        pytest.approx(-0.693147, abs=1e-6),
        pytest.approx(-0.313262, abs=1e-6),
        pytest.approx(-1000),
        pytest.approx(0, abs=1e-12),
        None,
    ]
    with pytest.raises(ValueError, match="scale=0"):
        LogSigmoid(value, scale=0)


def test_par_averages_sigmoids_over_references():
    references = ["1", ["1", "3"], [], None, ["", "2"], "5"]
    got = score(PAR(value), 1, 1, 1, 1, 2, "", reference_completion=references)
    # sigmoid(0) = 0.5, sigmoid(-2) = 0.119203
    assert got == [0.5, pytest.approx((0.5 + 0.119203) / 2, abs=1e-6), None, None, 0.5, None]
    assert score(PAR(value), 1000, -1000, reference_completion=["0", "0"]) == [1.0, 0.0]


def test_par_hands_references_their_sample():
    seen = []

    def spy(prompts, completions, completion_ids, topic, log_metric, **columns):
        seen.append((list(prompts), list(completions), completion_ids, list(topic)))
        log_metric("calls", 1)
        return [0.0] * len(completions)

    logged = []
    PAR(spy, reference_column="gold")(
        ["p", "q"],
        ["x", "y"],
        [[1], [2]],
        gold=[["r", "s"], "t"],
        topic=["A", "B"],
        log_metric=lambda name, number: logged.append(name),
    )
    assert seen[0] == (["p", "q"], ["x", "y"], [[1], [2]], ["A", "B"])
    assert seen[1] == (["p", "p", "q"], ["r", "s", "t"], None, ["A", "A", "B"])
    assert logged == ["calls"]  # references are not logged as if they were samples


def test_par_on_conversations_and_tokens(no_pad_tokenizer):
    reward = PAR(LengthReward(4), tokenizer=no_pad_tokenizer)
    completion = [{"role": "assistant", "content": "a b"}]
    references = ["a b", [{"role": "assistant", "content": "a b"}], [[{"role": "assistant", "content": "a b c d"}]]]
    got = reward([[]] * 3, [completion] * 3, [[5, 6]] * 3, reference_completion=references)
    # lengths 2 and 2, 2 and 2, 2 and 4: rewards -0.5 and 0
    assert got == [0.5, 0.5, pytest.approx(0.377541, abs=1e-6)]


def test_par_without_its_column():
    with pytest.raises(TypeError, match=r"'reference_completion'.*\['topic'\]"):
        score(PAR(value), 1, topic=["A"])


def test_ensemble_aggregates_and_logs_disagreement():
    metrics: dict[str, float] = {}
    rows = [4.0, -1.0, ""]
    cases: list[tuple[Any, list[float]]] = [
        ("mean", [6.0, -1.5]),
        ("min", [4.0, -2.0]),
        ("mean_minus_std", [5.0, -1.75]),
        ("mean_minus_var", [4.0, -1.625]),
    ]
    for aggregation, expected in cases:
        reward = Ensemble([value, double], aggregation, k=0.5, name="judges")
        assert score(reward, *rows, log_metric=metrics.__setitem__) == [*expected, None]
        # population spreads of (4, 8) and (-1, -2) are 2 and 0.5
        assert metrics == {"judges/disagreement": 1.25}
    for options in ({"aggregation": "max"}, {"k": -1}):
        with pytest.raises(ValueError, match=str(next(iter(options.values())))):
            Ensemble([value, double], **options)
    with pytest.raises(ValueError, match="at least two"):
        Ensemble([value])


def test_members_must_be_functions():
    with pytest.raises(TypeError, match="'some/model'.*PreferenceReward"):
        Ensemble(["some/model", value])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no reward function"):
        WeightedSum([])


def test_async_members_run_concurrently_also_inside_a_loop():
    started = []

    async def waits_for_the_other(completions, **columns):
        started.append(1)
        while len(started) < 2:  # never ends unless both run at once
            await asyncio.sleep(0.001)
        return value(completions)

    reward = WeightedSum([waits_for_the_other, value, waits_for_the_other])
    assert score(reward, 1, "") == [3.0, None]

    async def inside():
        return score(WeightedSum([slow_value, value]), 1)

    assert asyncio.run(inside()) == [2.0]


def test_an_async_function_may_call_a_combination_of_async_functions():
    async def outer(completions, **columns):
        return WeightedSum([slow_value, value])([""] * len(completions), completions, None)

    assert score(WeightedSum([outer]), 1) == [2.0]


# Running normalization


def test_running_normalization_uses_all_batches_before():
    batches = [[1.0, 2.0, 6.0], [10.0, -4.0], [3.0], [0.5, 0.25, 8.0, 9.0]]
    reward = RunningNormalization(value)
    seen: list[float] = []
    for batch in batches:
        known = seen or batch  # the first batch is normalized by itself
        expected = (np.array(batch) - np.mean(known)) / np.std(known)
        assert score(reward, *batch) == pytest.approx(expected.tolist())
        seen += batch


def test_running_normalization_options():
    reward = RunningNormalization(value, center=False, clip=1.5)
    assert score(reward, 1, 3, "") == [1.0, 1.5, None]  # std 1
    with pytest.raises(ValueError, match="clip=0"):
        RunningNormalization(value, clip=0)


@pytest.mark.parametrize("first", [[5.0], [5.0, 5.0], [""]])
def test_running_normalization_of_one_or_equal_samples_is_finite(first):
    reward = RunningNormalization(value)
    for _ in range(2):
        assert all(number in (0.0, None) for number in score(reward, *first))
    assert math.isfinite(score(reward, 7)[0])


def test_moments_merge_like_numpy_far_from_zero():
    reward = RunningNormalization(value)
    numbers = 1e6 + np.random.default_rng(0).normal(size=300)
    for chunk in np.split(numbers, 10):
        score(reward, *chunk)
    assert reward.moments.mean == pytest.approx(np.mean(numbers), rel=1e-12)
    assert reward.moments.std == pytest.approx(np.std(numbers), rel=1e-6)


def test_a_weight_goes_with_its_member_where_another_has_no_reward():
    def nothing(completions, **columns):
        return [None for _ in completions]

    assert score(WeightedSum([nothing, value], [2.0, 3.0]), 5, -1) == [15.0, -3.0]
    assert score(WeightedSum([nothing, nothing], [2.0, 3.0]), 5) == [None]


def test_the_limit_is_that_of_the_normalized_reward():
    reward = RunningNormalization(value, clip=1.5)
    score(reward, 0, 4)  # mean 2, standard deviation 2
    assert score(reward, 10, -10, 3) == [1.5, -1.5, 0.5]


def test_rewards_that_are_not_counted_in_yet_are_saved_too():
    first, second = RunningNormalization(value), RunningNormalization(value)
    first.synchronize_each_call = False
    score(first, 1, 5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.synchronize()
    assert (second.moments.n, second.moments.mean, second.moments.std) == (2, 3, 2)


def nested():
    twice = RunningNormalization(RunningNormalization(value))
    return WeightedSum([twice, Clipped(RunningNormalization(double), -1, 1)])


def test_state_goes_through_json_and_continues_identically():
    first = nested()
    for batch in ([1, 5, 2], [7, -3]):
        score(first, *batch)
    second = nested()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for batch in ([4, 5], [9]):
        assert score(second, *batch) == score(first, *batch)
    assert score(nested(), 4, 4.5) != score(first, 4, 4.5)


def test_combinations_pickle_with_their_state():
    combinations = [
        nested(),
        Ensemble([value, double], "min"),
        LogSigmoid(value),
        PAR(value, reference_column="gold"),
    ]
    for reward in combinations:
        score(reward, 1, 5, 2, gold=["1", "2", "3"])
        copy = pickle.loads(pickle.dumps(reward))
        assert score(copy, 3, 4, gold=["1", "2"]) == score(reward, 3, 4, gold=["1", "2"])


def test_names():
    assert Clipped(value, 0).__name__ == "clipped_value"
    assert RunningNormalization(LengthReward(2)).__name__ == "normalized_length"
    assert PAR(value, name="mine").__name__ == "mine"


def _two_processes(rank, folder, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    batches: list[list[list[Any]]] = [[[1.0, 2.0], [10.0]], [[3.0], [""]]]
    plain, run = RunningNormalization(value), RunningNormalization(value)
    calls = []

    def fails_once_on_one_process(completions, **columns):
        calls.append(1)
        if rank == 0 and len(calls) == 1:
            raise RuntimeError("no luck")
        return [0.0] * len(completions)

    runner = RewardRunner(WeightedSum([run, fails_once_on_one_process]), retries=1)
    for batch in batches:
        score(plain, *batch[rank])
        texts = [str(number) for number in batch[rank]]
        runner([""] * len(texts), texts, [[1]] * len(texts), {})
    queue.put((rank, list(plain.moments), list(run.moments), score(plain, 2.0)))
    torch.distributed.destroy_process_group()


def test_moments_are_those_of_all_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_two_processes, args=(rank, tmp_path, queue), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=20) for _ in workers]
    for worker in workers:
        worker.join(timeout=20)
    numbers = [1.0, 2.0, 10.0, 3.0]
    expected = [4, statistics.fmean(numbers), statistics.pvariance(numbers) * 4]
    for _, plain, run, last in results:
        assert plain == pytest.approx(expected)
        assert run == pytest.approx(expected)
        assert last == pytest.approx([(2.0 - 4.0) / statistics.pstdev(numbers)])
