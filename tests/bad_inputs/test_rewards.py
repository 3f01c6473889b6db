# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions that misbehave, and options of rewards that cannot be right."""

import math
import sys
from typing import Any

import torch

from tests.bad_inputs.case import Case, check, table
from trl_ext.evaluation.judges import EndpointJudge, RewardJudge
from trl_ext.instructions.options import RunOptions
from trl_ext.rewards import Clipped, Ensemble, LogSigmoid, RewardRunner, RunningNormalization, WeightedSum, check_reward
from trl_ext.rewards.base import RewardTypeError, RewardValueError


def length(completions, **columns):
    return [float(len(completion)) for completion in completions]


def run(reward: Any, **options: Any) -> object:
    """Two samples."""
    runner = RewardRunner(reward, **{"retries": 0, "backoff": 0, **options})
    return runner(["p", "q"], ["x", "y"], [[1], [2]], {"topic": ["a", "b"]})


def returns(result: Any) -> Any:
    def fixed(completions, **columns):
        return result

    return fixed


def broken(name: str, result: Any, message: str, error: type[Exception] = RewardTypeError) -> Case:
    return Case(name, lambda: run(returns(result)), error, f"Reward function 'fixed' returned {message}")


def asks(completions, solution, **columns):
    return [0.0] * len(completions)


def logs_too_few(completions, log_extra, **columns):
    log_extra("upper", ["X"])
    return length(completions)


def logs_without_a_name(completions, log_metric, **columns):
    log_metric(3, 1.0)
    return length(completions)


def exits(completions, **columns):
    sys.exit(0)


def retires(completions, **columns):
    raise KeyError


def failed(name: str, reward: Any, what: str) -> Case:
    message = (
        f"Reward function '{name}' failed on at least 1 of 2 samples after 0 retries, more than "
        f"max_reward_failures=0.1 allows; sample 0 (prompt 'p', completion 'x') gave {what}. Fix the function, let it "
        "return None where it does not apply, or raise `max_reward_failures` or `reward_timeout`."
    )
    return Case(f"{name} fails", lambda: run(reward), RuntimeError, message)


ONE = "return a number, a list of one number a token, or None."
LIST = "return a list with one number or None per completion."
FINITE = "which is not a finite float32: return None for a sample that it cannot score."
OPTIONS = "they must be >= 0, positive or None, and within [0, 1]."

CASES = [
    broken("one number", 0.5, f"0.5 (float): {LIST}"),
    broken("nothing", None, f"None (NoneType): {LIST}"),
    broken("a text", "ab", f"'ab' (str): {LIST}"),
    broken("a mapping", {"x": 1}, f"{{'x': 1}} (dict): {LIST}"),
    broken("a set has no order", {1.0}, f"{{1.0}} (set): {LIST}"),
    broken("text in the list", [1.0, "2"], f"'2' (str) for sample 1: {ONE}"),
    broken("complex number", [1j, 1.0], f"1j (complex) for sample 0: {ONE}"),
    broken(
        "list of too many numbers",
        [[1.0] * 9, 1.0],
        "9 token rewards for sample 0, whose completion has 1 tokens: return one number for each of its "
        "`completion_ids`, or one for the whole completion.",
        RewardValueError,
    ),
    broken(
        "matrix",
        torch.ones(2, 1),
        "an array of shape (2, 1): return one of shape (2,), one number per completion, or a "
        "list with a list of one number a token per completion.",
    ),
    broken("too few", [1.0], "1 rewards for 2 completions: return exactly one per completion.", RewardValueError),
    broken("too many", [1.0] * 3, "3 rewards for 2 completions: return exactly one per completion.", RewardValueError),
    broken("nan", [1.0, math.nan], f"nan for sample 1, {FINITE}", RewardValueError),
    broken("infinite", [math.inf, 1.0], f"inf for sample 0, {FINITE}", RewardValueError),
    broken("beyond float32", [1e39, 1.0], f"1e+39 for sample 0, {FINITE}", RewardValueError),
    broken("beyond every float", [10**400, 1.0], f"inf for sample 0, {FINITE}", RewardValueError),
    Case(
        "missing column",
        lambda: run(asks),
        RewardTypeError,
        "Reward function 'asks' asks for ['solution'], but there is only ['completion_ids', 'completions', "
        "'log_extra', 'log_metric', 'on_progress', 'prompts', 'topic', 'trainer_state']: add the column to the dataset "
        "or give the parameter a default.",
    ),
    Case(
        "logs too few values",
        lambda: run(logs_too_few),
        RewardValueError,
        "Reward function 'logs_too_few' logged 1 values for the column 'upper' and 2 completions: log one per "
        "completion.",
    ),
    Case(
        "logs without a name",
        lambda: run(logs_without_a_name),
        RewardTypeError,
        "`log_metric` got the name 3: give a text, such as 'my_reward/matches'.",
    ),
    failed("exits", exits, "SystemExit: 0"),
    failed("retires", retires, "KeyError"),
    Case(
        "lists of different lengths",
        lambda: RewardRunner(length)(["p"], ["x"], [[1]], {"topic": []}),
        ValueError,
        "The batch to score has lists of different lengths, {'topic': 0, 'prompts': 1, 'completions': 1, "
        "'completion_ids': 1}: give one value a sample.",
    ),
    Case(
        "no function", lambda: RewardRunner([]), ValueError, "reward_funcs is empty: give at least one reward function."
    ),
    Case(
        "no function but a number",
        lambda: RewardRunner([3]),
        TypeError,
        "reward_funcs has 3 (int): give a function, a model or its name.",
    ),
    Case(
        "weights of another number",
        lambda: RewardRunner([length, length], weights=[1.0]),
        ValueError,
        "Got 1 reward weights for 2 reward functions: give one each.",
    ),
    Case(
        "a weight that is NaN",
        lambda: RewardRunner([length, length], weights=[1.0, math.nan]),
        ValueError,
        "`reward_weights` has nan: give finite numbers, 0 for a reward that is only logged.",
    ),
    Case(
        "a weight that is infinite",
        lambda: RewardRunner(length, weights=[-math.inf]),
        ValueError,
        "`reward_weights` has -inf: give finite numbers, 0 for a reward that is only logged.",
    ),
    Case(
        "a weight that is text",
        lambda: RewardRunner(length, weights=["1"]),  # type: ignore[list-item]
        TypeError,
        "`reward_weights` has '1' (str): give numbers.",
    ),
    Case(
        "a member's weight that is NaN",
        lambda: WeightedSum([length], [math.nan]),
        ValueError,
        "`weights` has nan: give finite numbers, 0 for a reward that is only logged.",
    ),
    Case(
        "members' weights of another number",
        lambda: WeightedSum([length], [1.0, 2.0]),
        ValueError,
        "WeightedSum got 2 weights for 1 reward functions: give one each.",
    ),
    Case(
        "clip range of NaN",
        lambda: RewardRunner(length, clip_range=(math.nan, 1.0)),
        ValueError,
        "clip_range is (nan, 1.0): give (low, high) with low < high.",
    ),
    Case(
        "clip range the wrong way round",
        lambda: RewardRunner(length, clip_range=(2.0, 1.0)),
        ValueError,
        "clip_range is (2.0, 1.0): give (low, high) with low < high.",
    ),
    Case(
        "timeout of NaN",
        lambda: RewardRunner(length, timeout=math.nan),
        ValueError,
        f"Got retries=2, timeout=nan, max_reward_failures=0.1: {OPTIONS}",
    ),
    Case(
        "negative retries",
        lambda: RewardRunner(length, retries=-1),
        ValueError,
        f"Got retries=-1, timeout=None, max_reward_failures=0.1: {OPTIONS}",
    ),
    Case(
        "negative backoff",
        lambda: RewardRunner(length, backoff=-1.0),
        ValueError,
        "Got backoff=-1.0: give the seconds before the first retry, 0 or more.",
    ),
    Case(
        "endless backoff",
        lambda: RewardRunner(length, backoff=math.inf),
        ValueError,
        "Got backoff=inf: give the seconds before the first retry, 0 or more.",
    ),
    Case(
        "clipped by NaN",
        lambda: Clipped(length, low=math.nan),
        ValueError,
        "Clipped got low=nan and high=None: give at least one limit, low <= high.",
    ),
    Case(
        "centre of NaN",
        lambda: LogSigmoid(length, center=math.nan),
        ValueError,
        "LogSigmoid got center=nan and scale=1.0: give finite numbers, scale > 0.",
    ),
    Case(
        "normalization clipped by NaN",
        lambda: RunningNormalization(length, clip=math.nan),
        ValueError,
        "RunningNormalization got clip=nan: it must be positive, or None.",
    ),
    Case(
        "disagreement weighed by NaN",
        lambda: Ensemble([length, length], "mean_minus_std", k=math.nan),
        ValueError,
        "Ensemble got k=nan: give a finite number, 0 or more.",
    ),
    Case(
        "an ensemble of one",
        lambda: Ensemble([length]),
        ValueError,
        "Ensemble got one reward function: give at least two.",
    ),
    Case(
        "a name as a member",
        lambda: WeightedSum(["some/model"]),  # type: ignore[list-item]
        TypeError,
        "'weighted_sum' got 'some/model' (str), which is no reward function: wrap the name of a model in "
        "PreferenceReward or ToxicityReward.",
    ),
    Case(
        "check_reward of what exits",
        lambda: check_reward(exits),
        ValueError,
        "Reward function 'exits' failed on a sample (line 53 of 'test_rewards.py' raises SystemExit: 0).",
    ),
    Case(
        "check_reward without completions",
        lambda: check_reward(length, ["p"]),
        ValueError,
        "check_reward got only one of `prompts` and `completions`: give both or neither.",
    ),
    Case(
        "a judge's margin",
        lambda: RewardJudge(length, margin=-1),
        ValueError,
        "`margin` is -1; it must be 0 or more.",
    ),
    Case(
        "a judge's URL, its password hidden",
        lambda: EndpointJudge("ftp://me:pw@host/v1?key=k3y", "m"),
        ValueError,
        "The judge's URL is 'ftp://host/v1'; it must begin with http:// or https:// and a host.",
    ),
    *(
        Case(
            f"PPO folder {name!r}",
            lambda name=name: RunOptions(ppo_folder=name),  # type: ignore[misc]
            ValueError,
            f"`ppo_folder` must be a plain name other than sft and reward, got '{name}'.",
        )
        for name in ("..", "../elsewhere", "/tmp/elsewhere", "a\\b", "reward", "")
    ),
    Case(
        "compare with another place",
        lambda: RunOptions(compare_with="../../elsewhere"),
        ValueError,
        "`compare_with` must be the plain name of a `ppo_folder` in the output directory, got '../../elsewhere'.",
    ),
]


@table(CASES)
def test_bad_rewards(case: Case) -> None:
    check(case)
