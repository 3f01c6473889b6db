# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Rewards of single tokens, through every combination and the runner, against sums by hand."""

import asyncio
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from trl_ext.rewards import (
    PAR,
    Clipped,
    Ensemble,
    LengthDebiased,
    LogSigmoid,
    RewardRunner,
    RunningNormalization,
    Summed,
    WeightedSum,
    check_reward,
)
from trl_ext.rewards.base import RewardTypeError, RewardValueError
from trl_ext.rewards.tokens import token_tensor

IDS = [[1, 2, 3], [4, 5], [6]]
DENSE = [[1.0, -2.0, 4.0], [0.5, 0.25], [2.0]]


def dense(completions: list[str], **columns: Any) -> list[list[float]]:
    return [DENSE[int(text)] for text in completions]


def whole(completions: list[str], **columns: Any) -> list[float]:
    return [10.0 * int(text) for text in completions]


def score(reward: Any, **columns: Any) -> Any:
    return reward(["p"] * 3, ["0", "1", "2"], IDS, **columns)


def run(*functions: Any, **options: Any) -> Any:
    return RewardRunner(list(functions), **options)(["p"] * 3, ["0", "1", "2"], IDS, {})


def returning(*values: Any) -> Any:
    def odd(completions: list[str], **columns: Any) -> Any:
        return [values[int(text)] for text in completions]

    return odd


# ---- the contract ----


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            (DENSE[0], [0.5], 1.0),
            RewardValueError,
            "Reward function 'odd' returned 1 token rewards for sample 1, whose completion has 2 tokens: return one "
            "number for each of its `completion_ids`, or one for the whole completion.",
        ),
        ((1.0, [0.5, math.nan], 1.0), RewardValueError, "'odd' returned nan for token 1 of sample 1, which is not"),
        ((1.0, [math.inf, 0.5], 1.0), RewardValueError, "'odd' returned inf for token 0 of sample 1, which is not"),
        ((1.0, [0.5, None], 1.0), RewardTypeError, "returned None (NoneType) for token 1 of sample 1: return a number"),
        ((1.0, [0.5, [1.0]], 1.0), RewardTypeError, "returned [1.0] (list) for token 1 of sample 1: return a number"),
        ((1.0, [3e38, 3e38], 1.0), RewardValueError, "for the sum over the tokens of sample 1, which is not a finite"),
        ((1.0, "ab", 1.0), RewardTypeError, "return a number, a list of one number a token, or None"),
        ((1.0, {1: 2.0, 2: 1.0}, 1.0), RewardTypeError, "return a number, a list of one number a token, or None"),
    ],
)
def test_lists_that_break_the_contract_are_refused_in_one_sentence(values, error, message):
    with pytest.raises(error, match=re.escape(message)):
        run(returning(*values))


@pytest.mark.parametrize(
    "of",
    [
        tuple,
        np.array,
        torch.tensor,
        lambda row: [torch.tensor(r) for r in row],
        lambda row: [np.float32(r) for r in row],
    ],
)
def test_lists_may_be_tuples_arrays_and_tensors(of):
    scores = run(returning(of(DENSE[0]), None, 7))
    assert scores.tokens.tolist() == [[1.0, -2.0, 4.0], [0.0] * 3, [7.0, 0.0, 0.0]]
    assert scores.valid.tolist() == [True, False, True] and scores.token_functions == ("odd",)


def test_one_array_for_the_batch_is_refused_because_its_padding_would_be_read_as_rewards():
    def padded(completions, **columns):
        return np.zeros((len(completions), 3))

    with pytest.raises(RewardTypeError, match="a list with a list of one number a token"):
        run(padded)


# ---- combinations, by hand ----


def test_weighted_sums_add_token_by_token_and_numbers_to_the_last():
    assert score(WeightedSum([dense, whole], [2.0, 0.5])) == [[2.0, -4.0, 8.0], [1.0, 5.5], [14.0]]
    assert score(WeightedSum([dense, returning(None, 1.0, None)])) == [DENSE[0], [0.5, 1.25], DENSE[2]]


def test_bounds_hold_for_the_sums_so_far():
    # Sums 1, -1, 3 become 1, 0, 2.5: the tokens earn what changes.
    assert score(Clipped(dense, 0.0, 2.5)) == [[1.0, -1.0, 2.5], [0.5, 0.25], [2.0]]
    # At most 0.6: the second token of 0.5 and 0.25 finds 0.1 left.
    assert score(Clipped(dense, high=0.6))[1] == pytest.approx([0.5, 0.1])


def test_a_bound_above_nothing_is_earned_at_the_end():
    # All sums so far lie below 5, so that only the end is worth 5.
    assert score(Clipped(dense, low=5.0)) == [[0.0, 0.0, 5.0], [0.0, 5.0], [5.0]]


def test_every_combination_keeps_the_sum_of_the_tokens():
    references = {"reference_completion": [["1", "2"], "2", "1"]}
    for make in (
        lambda f: Clipped(f, -0.5, 1.0),
        lambda f: LogSigmoid(f, center=1.0, scale=2.0),
        lambda f: RunningNormalization(f, clip=1.0),
        lambda f: Ensemble([f, whole], "min"),
        lambda f: Ensemble([f, whole], "mean_minus_std"),
        lambda f: LengthDebiased(f, min_samples=2),
        lambda f: WeightedSum([f, whole], [0.3, -1.0]),
        lambda f: PAR(f),
    ):
        of_tokens, of_sums = make(dense), make(Summed(dense))
        for _ in range(2):  # the second call reads the moments of the first
            tokens, numbers = score(of_tokens, **references), score(of_sums, **references)
            if not isinstance(of_tokens, PAR):
                assert all(isinstance(row, list) for row in tokens)
            assert [math.fsum(row) for row in tokens] == pytest.approx(numbers)
            assert [len(row) for row in tokens] == [3, 2, 1]


def test_log_sigmoid_credits_the_token_that_moves_it():
    first, second, third = score(LogSigmoid(dense))[0]
    log_half, one, minus_one, three = (math.log(1 / (1 + math.exp(-x))) for x in (0, 1, -1, 3))
    assert (first, second) == pytest.approx((one - log_half, minus_one - one))
    assert third == pytest.approx(three - minus_one + log_half)


def test_an_ensemble_aggregates_the_sums_so_far():
    logged = {}
    pair = Ensemble([dense, returning([2.0, 0.0, 0.0], [0.0, 0.0], 0.0)], "min")
    # Sums 1, -1, 3 and 2, 2, 2: minima 1, -1, 2.
    assert score(pair, log_metric=logged.__setitem__)[0] == [1.0, -2.0, 3.0]
    assert logged["ensemble/disagreement"] == pytest.approx((0.5 + 0.375 + 1.0) / 3)


def test_normalization_scales_tokens_and_shifts_the_end():
    reward = RunningNormalization(dense)
    score(reward)
    mean, std = (3 + 0.75 + 2) / 3, np.std([3, 0.75, 2])
    expected = [1 / std, -2 / std, (4 - mean) / std]
    assert score(reward)[0] == pytest.approx(expected)


def test_a_list_with_zeros_before_its_end_is_the_number_itself():
    numbers = [3.7, -0.2, 1.1]
    lists = [[0.0, 0.0, 3.7], [0.0, -0.2], [1.1]]
    references = {"reference_completion": ["0", "1", "2"]}
    for make in (
        lambda f: Clipped(f, 0.1, 1.0),
        lambda f: LogSigmoid(f, center=1.0),
        lambda f: RunningNormalization(f),
        lambda f: PAR(f),
        lambda f: Ensemble([f, whole], "mean_minus_var"),
        lambda f: WeightedSum([f, whole], [0.3, 1.7]),
        lambda f: LengthDebiased(f, min_samples=2),
    ):
        one, other = make(returning(*numbers)), make(returning(*lists))
        for _ in range(2):
            values = score(one, **references)
            assert score(other, **references) == [
                [0.0] * (len(ids) - 1) + [v] for ids, v in zip(IDS, values, strict=True)
            ]


# ---- the runner ----


def test_the_runner_puts_every_function_on_the_tokens():
    scores = run(dense, whole, returning(None, None, 1.0), weights=[2.0, 0.5, 1.0])
    assert scores.tokens.tolist() == [[2.0, -4.0, 8.0], [1.0, 5.5, 0.0], [15.0, 0.0, 0.0]]
    assert scores.total.tolist() == scores.tokens.sum(1).tolist() == [6.0, 6.5, 15.0]
    assert scores.per_function[:, :2].tolist() == [[3.0, 0.0], [0.75, 10.0], [2.0, 20.0]]
    assert scores.token_functions == ("dense",)
    assert run(whole).tokens is None and run(whole).token_functions == ()


def test_the_clip_range_bounds_the_sums_so_far():
    scores = run(dense, clip_range=(0.0, 2.5))
    assert scores.tokens.tolist() == [[1.0, -1.0, 2.5], [0.5, 0.25, 0.0], [2.0, 0.0, 0.0]]
    assert scores.total.tolist() == [2.5, 0.75, 2.0]
    assert scores.per_function[:, 0].tolist() == [3.0, 0.75, 2.0], "as the function gave them"


@pytest.mark.parametrize("clip_range", [None, (-0.5, 2.3)])
def test_numbers_and_lists_with_zeros_give_the_same_bits(clip_range):
    generator = torch.Generator().manual_seed(0)
    weights = [0.3, -1.7, 2.9]
    for _ in range(20):
        values = torch.randn(3, 3, generator=generator, dtype=torch.float64).tolist()
        lists = [[[0.0] * (len(ids) - 1) + [v] for ids, v in zip(IDS, row, strict=True)] for row in values]
        one = run(*(returning(*row) for row in values), weights=weights, clip_range=clip_range)
        other = run(*(returning(*row) for row in lists), weights=weights, clip_range=clip_range)
        assert torch.equal(one.total, other.total) and torch.equal(one.total, other.tokens.sum(1))
        ends = [len(ids) - 1 for ids in IDS]
        assert torch.equal(other.tokens[torch.arange(3), ends], one.total)


def test_failures_none_and_retries_with_token_rewards():
    tries: list[int] = []

    def flaky(completions, **columns):
        tries.append(len(completions))
        if len(tries) == 1:
            raise ConnectionError("again")
        return [ValueError("broken") if text == "1" else DENSE[int(text)] for text in completions]

    with pytest.warns(UserWarning, match="failed on 1 of 3 samples"):
        scores = run(WeightedSum([flaky, dense]), retries=1, backoff=0.0, max_reward_failures=0.5)
    assert scores.valid.tolist() == [True, False, True]
    assert scores.tokens.tolist() == [[2.0, -4.0, 8.0], [0.0] * 3, [4.0, 0.0, 0.0]]


def test_tokens_of_a_sample_that_another_function_failed_on_earn_nothing():
    with pytest.warns(UserWarning, match="failed on 1 of 3 samples"):
        scores = run(dense, returning(1.0, ValueError("broken"), 1.0), retries=0, max_reward_failures=0.5)
    assert scores.valid.tolist() == [True, False, True]
    assert scores.tokens.tolist() == [[1.0, -2.0, 5.0], [0.0] * 3, [3.0, 0.0, 0.0]]
    assert scores.total.tolist() == [4.0, 0.0, 3.0]


def test_async_and_late_functions_may_give_token_rewards():
    async def slow(completions, **columns):
        await asyncio.sleep(0.01)
        return [DENSE[int(text)] for text in completions]

    assert run(slow, WeightedSum([slow, dense]), timeout=5.0).tokens[0].tolist() == [3.0, -6.0, 12.0]


# ---- the check ----


def ones(completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[list[float]]:
    return [[1.0] * len(ids) for ids in completion_ids]


def words(completions: list[Any], **columns: Any) -> list[list[float]]:
    return [[1.0] * len(str(text).split()) for text in completions]


def drifting(completion_ids: list[list[int]], **columns: Any) -> list[list[float]]:
    return [[float(len(completion_ids))] * len(ids) for ids in completion_ids]


def test_check_reward_takes_token_rewards_and_compares_lengths():
    report = check_reward(ones)
    assert not report.warnings and [len(row) for row in report.values][3] == 0
    with pytest.raises(
        ValueError, match="'words' returned 6 token rewards for sample 0, whose completion has 29 tokens"
    ):
        check_reward(words)
    with pytest.warns(UserWarning, match="gives token rewards with the sums"):
        check_reward(drifting)
    assert check_reward(ones, ["p"], ["ab"], completion_ids=[[7, 8, 9]]).values == [[1.0] * 3]


def test_a_bound_is_counted_once_on_the_last_token():
    weights, bounds = torch.tensor([2.0, 1.0]), torch.tensor([0.5, 0.0])
    rewards = [[[1.0, 2.0], 3.0], [None, 4.0]]
    found = token_tensor(rewards, [2, 3], weights=weights, bounds=bounds, clip_range=None)
    assert found.tolist() == [[2.0, 3.0, 0.0], [0.0, 0.0, 9.0]]
