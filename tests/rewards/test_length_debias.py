# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import json
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from trl_ext.rewards import Clipped, LengthDebiased, RewardRunner


def value(completions, **columns):
    """The completion is the reward; an empty one has none."""
    return [float(completion) if completion else None for completion in completions]


def score(reward, points, **columns):
    """Rewards of completions whose texts are the second numbers and whose lengths are the first."""
    texts = [str(y) for _, y in points]
    return reward([""] * len(texts), texts, [[7] * x for x, _ in points], **columns)


def points(n, seed, slope=0.3):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 40, n)
    return [(int(x), float(slope * x + y)) for x, y in zip(lengths, generator.normal(size=n), strict=True)]


def test_the_line_of_all_batches_before_is_taken_out():
    reward = LengthDebiased(value, min_samples=8)
    seen: list[tuple[int, float]] = []
    for seed in range(5):
        batch = points(8, seed)
        expected = [y for _, y in batch]
        if seen:  # NumPy's own least squares
            x, y = np.array(seen).T
            slope = np.polyfit(x, y, 1)[0]
            expected = [b - slope * (a - x.mean()) for a, b in batch]
        assert score(reward, batch) == pytest.approx(expected)
        seen += batch


def test_what_remains_does_not_depend_on_length():
    reward = LengthDebiased(value)
    for seed in range(4):
        score(reward, points(500, seed))
    batch = points(2000, 99)
    lengths = [x for x, _ in batch]
    before, after = [y for _, y in batch], score(reward, batch)
    assert np.corrcoef(lengths, before)[0, 1] > 0.9
    assert abs(np.corrcoef(lengths, after)[0, 1]) < 0.1
    assert np.mean(after) == pytest.approx(np.mean(before), abs=0.3)


def test_few_samples_equal_lengths_and_no_reward():
    reward = LengthDebiased(value, min_samples=4)
    assert score(reward, [(1, 5), (3, ""), (9, 7)]) == [5, None, 7]
    assert score(reward, [(1, 5), (9, 7)]) == [5, 7], "only two of the three before had a reward"
    # from here on slope (7 - 5) / 8 at a mean length of 5
    assert score(reward, [(9, 7), (1, ""), (13, 0)]) == [6.0, None, -2.0]
    same = LengthDebiased(value, min_samples=2)
    for _ in range(3):
        assert score(same, [(3, 1), (3, 2)]) == [1, 2]


def test_slope_and_correlation_are_logged():
    logged: dict[str, float] = {}
    reward = LengthDebiased(value, min_samples=2, name="judge")
    score(reward, [(1, 1), (2, 2), (3, 6)], log_metric=logged.__setitem__)
    assert logged == {}
    score(reward, [(1, 1)], log_metric=logged.__setitem__)
    # deviations (-1, 0, 1) and (-2, -1, 3): products 5, squares 2 and 14
    assert logged == {"judge/slope": pytest.approx(2.5), "judge/length_correlation": pytest.approx(5 / 28**0.5)}


def test_the_correlation_is_that_of_all_batches_before():
    """Two batches whose lengths and rewards lie apart; NumPy's correlation of both."""
    logged: dict[str, float] = {}
    reward = LengthDebiased(value, min_samples=2)
    seen = [(1, 1.0), (2, 0.0), (3, 3.0), (20, 7.0), (21, 9.0)]
    score(reward, seen[:3])
    score(reward, seen[3:])
    score(reward, [(5, 5.0)], log_metric=logged.__setitem__)
    assert logged["debiased_value/length_correlation"] == pytest.approx(np.corrcoef(np.array(seen).T)[0, 1])


def test_errors():
    with pytest.raises(ValueError, match="min_samples=1"):
        LengthDebiased(value, min_samples=1)
    with pytest.raises(ValueError, match="'debiased_value' needs .* `completion_ids`"):
        LengthDebiased(value)([""], ["1"])


def test_state_goes_through_json_and_pickle():
    first = Clipped(LengthDebiased(value, min_samples=4), -50, 50)
    for seed in range(3):
        score(first, points(5, seed))
    second = Clipped(LengthDebiased(value, min_samples=4), -50, 50)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    third = pickle.loads(pickle.dumps(first))
    for seed in range(3, 6):
        expected = score(first, points(5, seed))
        assert score(second, points(5, seed)) == expected and score(third, points(5, seed)) == expected
    assert expected != [y for _, y in points(5, 5)]


def test_samples_that_are_not_in_the_line_yet_are_in_the_state():
    first, second = LengthDebiased(value, min_samples=4), LengthDebiased(value, min_samples=4)
    first.synchronize_each_call = False
    score(first, points(6, 0))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.line.n == 0, "they correct no reward yet"
    second.synchronize()
    x, y = np.array(points(6, 0)).T
    assert second.line.slope == pytest.approx(np.polyfit(x, y, 1)[0])


def run(runner, batch, **options):
    texts = [str(y) for _, y in batch]
    return runner([""] * len(texts), texts, [[7] * x for x, _ in batch], {}, **options)


def test_the_runner_finds_it_and_evaluation_teaches_it_nothing():
    inner = LengthDebiased(value, min_samples=4)
    runner = RewardRunner(Clipped(inner, -1000, 1000))
    run(runner, points(6, 0))
    before = json.dumps(runner.state_dict())
    evaluated = run(runner, points(6, 1), update_state=False).total
    assert json.dumps(runner.state_dict()) == before
    assert torch.equal(run(runner, points(6, 1)).total, evaluated)
    assert inner.line.n == 12 and inner.pending.n == 0


def test_a_batch_that_is_scored_again_counts_once():
    calls = []

    def fails_once(completions, **columns):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no luck")
        return [0.0] * len(completions)

    def member(prompts, completions, completion_ids, **columns):
        return value(completions)

    from trl_ext.rewards import WeightedSum

    inner = LengthDebiased(member)
    run(RewardRunner(WeightedSum([inner, fails_once]), retries=1), points(6, 0))
    assert len(calls) == 1 + 6 and inner.line.n == 6


def _process(rank, folder, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    plain, inside = LengthDebiased(value, min_samples=4), LengthDebiased(value, min_samples=4)
    runner = RewardRunner(inside)
    batches: list[list[Any]] = [[points(3, 0), points(4, 1)], [points(2, 2), [(5, "")]]]
    for batch in batches[rank]:
        score(plain, batch)
        run(runner, batch)
    queue.put((list(plain.line), list(inside.line)))
    torch.distributed.destroy_process_group()


def test_the_line_is_that_of_all_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_process, args=(rank, tmp_path, queue), daemon=True) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=20) for _ in workers]
    for worker in workers:
        worker.join(timeout=20)
    x, y = np.array(points(3, 0) + points(4, 1) + points(2, 2)).T
    for lines in results:
        for n, mean_x, mean_y, xx, _, xy in lines:
            assert (n, mean_x, mean_y) == (9, pytest.approx(x.mean()), pytest.approx(y.mean()))
            assert xy / xx == pytest.approx(np.polyfit(x, y, 1)[0])
