# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""From scores to advantages, and to the log, worked by hand on three completions."""

import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.two_threads import on_two
from trl_ext.experience.advantages import (
    AdvantageOptions,
    add_advantages,
    check_finite,
    describe,
    monte_carlo_returns,
    named_rewards,
    scored_by,
    warn_of_equal_rewards,
)
from trl_ext.experience.rollout import Rollout, collate
from trl_ext.rewards import Scores

NAN = float("nan")


def one_process(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def rollout() -> Rollout:
    """Two tokens that ended by themselves with a score of 2; three that did not, with -1; one that was not scored."""
    out = collate([[5], [5, 6], [7]], [[8, 2], [8, 9, 10], [11]], [True, False, True], pad_token_id=0)
    out.valid = torch.tensor([True, True, False])
    out.completion_mask[2] = False
    out.scores = torch.tensor([2.0, -1.0, 0.0])
    out.old_logps = torch.tensor([[-1.0, -2.0, 0.0], [-1.0, -1.0, -3.0], [0.0] * 3])
    out.ref_logps = torch.tensor([[-1.5, -1.0, 0.0], [-1.0, -1.0, -3.0], [0.0] * 3])
    out.kl = torch.tensor([[0.1, 0.2, 9.0], [0.1, 0.0, 0.4], [9.0] * 3])
    out.old_values = torch.tensor([[0.5, 1.0, 0.0], [0.2, 0.4, 0.6], [0.0] * 3])
    return out


LAST_VALUES = torch.tensor([99.0, 3.0, 99.0])


def with_advantages(
    kl_coef: float = 0.1,
    rows: list[int] | None = None,
    reduce: Callable[[torch.Tensor], torch.Tensor] = one_process,
    **changes: Any,
) -> Rollout:
    settings: dict[str, Any] = {
        "kl_estimator": "k1",
        "gamma": 1.0,
        "lam": 0.5,
        "lam_critic": None,
        "lam_adaptive_alpha": None,
        "bootstrap_truncated": False,
        "whiten_rewards": False,
        "whiten_advantages": False,
        "critic_agreement_share": 0.2,
    }
    out = rollout()
    last_values = LAST_VALUES
    if rows is not None:
        out, last_values = out.select(torch.tensor(rows)), LAST_VALUES[rows]
    options = AdvantageOptions(**{**settings, **changes})
    add_advantages(out, last_values, options, kl_coef=kl_coef, reduce=reduce)
    assert (out.advantages[~out.completion_mask] == 0).all()
    return out


def tokens(values: torch.Tensor) -> list[float]:
    """The five values inside the mask."""
    return values[rollout().completion_mask].tolist()


def test_advantages_by_hand():
    # Token rewards -0.05 and 2 + 0.1; 0, 0 and -1. Deltas 0.45 and 1.1; 0.2, 0.2 and -1.6.
    out = with_advantages()
    assert tokens(out.advantages) == pytest.approx([1.0, 1.1, -0.1, -0.6, -1.6])
    assert tokens(out.returns) == pytest.approx([1.5, 2.1, 0.1, -0.2, -1.0])
    assert out.kl_coefs.tolist() == [0, 0, 0], "an estimator has no term in the loss"


def test_gamma_and_lambda_are_used():
    out = with_advantages(gamma=0.5, lam=0.0)
    assert tokens(out.advantages) == pytest.approx([-0.05, 1.1, 0.0, -0.1, -1.6], abs=1e-6)


def test_only_truncated_completions_go_on_with_the_last_value():
    out = with_advantages(bootstrap_truncated=True)
    assert tokens(out.advantages) == pytest.approx([1.0, 1.1, 0.65, 0.9, 1.4])
    assert tokens(out.returns) == pytest.approx([1.5, 2.1, 0.85, 1.3, 2.0])


def test_the_critic_may_have_a_lambda_of_its_own():
    # Monte Carlo: the sum of the rewards still to come.
    out = with_advantages(lam_critic=1.0)
    assert tokens(out.advantages) == pytest.approx([1.0, 1.1, -0.1, -0.6, -1.6])
    assert tokens(out.returns) == pytest.approx([2.05, 2.1, -1.0, -1.0, -1.0])


def test_a_lambda_of_zero_for_the_critic_is_not_none():
    # One step: the reward and the next value.
    assert tokens(with_advantages(lam_critic=0.0).returns) == pytest.approx([0.95, 2.1, 0.4, 0.6, -1.0])


def test_monte_carlo_returns_are_sums_of_rewards_whatever_the_lambdas_and_leave_the_rollout_alone():
    out = rollout()
    options = AdvantageOptions("k1", 1.0, 0.5, 0.3, 0.7, False, False, True, 0.0)
    found = monte_carlo_returns(out, LAST_VALUES, options, kl_coef=0.1, reduce=one_process)
    assert tokens(found) == pytest.approx([2.05, 2.1, -1.0, -1.0, -1.0])
    assert not out.advantages.any() and not out.returns.any()
    white = monte_carlo_returns(
        out, LAST_VALUES, replace(options, whiten_rewards=True), kl_coef=0.1, reduce=one_process
    )
    assert tokens(white) == pytest.approx(tokens(with_advantages(whiten_rewards=True, lam=1.0).returns))


def test_the_lambda_that_grows_with_length_is_the_actors_alone():
    # 1 - 1/2 and 1 - 1/3.
    out = with_advantages(lam_adaptive_alpha=1.0)
    assert tokens(out.advantages) == pytest.approx([1.0, 1.1, -0.37777778, -0.86666667, -1.6])
    assert tokens(out.returns) == pytest.approx([1.5, 2.1, 0.1, -0.2, -1.0])


def test_the_estimator_and_the_coefficient_are_used():
    # k2: 0.125 and 0.5. Lambda 1 and no values: sums of rewards.
    out = with_advantages(kl_coef=0.2, kl_estimator="k2", lam=1.0)
    assert tokens(out.returns) == pytest.approx([-0.025 + 2 - 0.1, 2 - 0.1, -1.0, -1.0, -1.0])
    assert tokens(with_advantages(kl_coef=0.0, lam=1.0).returns) == pytest.approx([2.0, 2.0, -1.0, -1.0, -1.0])


def test_whitened_advantages_have_mean_zero_and_variance_one_over_the_tokens():
    plain, white = (tokens(with_advantages(whiten_advantages=on).advantages) for on in (False, True))
    mean, deviation = statistics.fmean(plain), statistics.pstdev(plain)
    assert white == pytest.approx([(a - mean) / deviation for a in plain], abs=1e-5)
    assert tokens(with_advantages(whiten_advantages=True).returns) == tokens(with_advantages().returns)


def test_whitened_rewards_keep_their_mean():
    rewards = [-0.05, 2.1, 0.0, 0.0, -1.0]
    mean, deviation = statistics.fmean(rewards), statistics.pstdev(rewards)
    white = [(r - mean) / deviation + mean for r in rewards]
    assert statistics.fmean(white) == pytest.approx(mean)
    # Lambda 1: the return of a token is the sum of the rewards still to come.
    returns = tokens(with_advantages(whiten_rewards=True, lam=1.0).returns)
    assert returns == pytest.approx([sum(white[:2]), white[1], sum(white[2:]), sum(white[3:]), white[4]], abs=1e-5)


@pytest.mark.parametrize("white", ["whiten_rewards", "whiten_advantages"])
def test_two_processes_whiten_like_one(white: str):
    def process(number: int, reduce: Callable[..., torch.Tensor]) -> Rollout:
        return with_advantages(rows=[[0, 2], [1]][number], reduce=reduce, kl_estimator="exact", **{white: True})

    parts = on_two(process)
    one = with_advantages(kl_estimator="exact", **{white: True})
    for name in ("advantages", "returns"):
        found = [value for part in parts for value in getattr(part, name)[part.completion_mask].tolist()]
        assert found == pytest.approx(tokens(getattr(one, name)), abs=1e-5)
    assert [float(part.kl_coefs[0]) for part in parts] == pytest.approx([float(one.kl_coefs[0])] * 2)


def test_a_number_that_is_not_finite_ends_all_processes_and_padding_may_hold_any():
    junk = rollout()
    for name in ("old_logps", "ref_logps", "kl", "old_values"):
        getattr(junk, name)[~junk.completion_mask] = NAN
    check_finite(junk, one_process, 3)

    def check(number: int, reduce: Callable[..., torch.Tensor]) -> str:
        out = rollout()
        if number == 0:
            out.ref_logps[1, 1:] = torch.tensor([-math.inf, NAN])
        with pytest.raises(RuntimeError) as raised:
            check_finite(out, reduce, 3)
        return str(raised.value)

    first, second = on_two(check)
    assert first == second and first.startswith("Step 3: 2 log-probabilities under the reference of a fresh rollout")


# ---- the log ----


def described(**changes: Any) -> dict[str, float]:
    out = with_advantages()
    out.weights = torch.tensor([[1.5, 0.5, 7.0], [1.0, 1.0, 2.0], [7.0] * 3])
    scores = Scores(
        total=out.scores,
        per_function=torch.tensor([[1.0, NAN], [4.0, -3.0], [NAN, NAN]]),
        valid=out.valid,
        metrics={},
        extra={},
    )
    entropy = torch.tensor([[1.0, 2.0, 50.0], [3.0, 4.0, 5.0], [50.0] * 3])
    for name, value in changes.items():
        setattr(out, name, value)
    return describe(
        out, scores, ["length", "tone"], entropy, rewards=out.scores, count=len(out), weighted=True, reduce=one_process
    )


def test_the_log_by_hand():
    log = described()
    expected = {
        "reward": 0.5,
        "reward_std": 1.5,
        "rewards/length/mean": 2.5,
        "rewards/length/std": 1.5,
        "rewards/tone/mean": -3.0,
        "rewards/tone/std": 0.0,
        # Sums over completions, then the mean of the two that were scored: (0.1 + 0.2 + 0.1 + 0 + 0.4) / 2.
        "kl": 0.4,
        "rollout_entropy": 3.0,
        "advantages/mean": -0.04,
        "advantages/std": statistics.pstdev([1.0, 1.1, -0.1, -0.6, -1.6]),
        # 1 - Var(returns - values) / Var(returns)
        "explained_variance": 1
        - statistics.pvariance([1.0, 1.1, -0.1, -0.6, -1.6]) / statistics.pvariance([1.5, 2.1, 0.1, -0.2, -1.0]),
        "completions/mean_length": 2.5,
        "completions/terminated_fraction": 0.5,
        "importance_weight": 1.2,
        "rewards/skipped_fraction": 1 / 3,
    }
    assert log == pytest.approx(expected, abs=1e-5)
    assert all(type(value) is float for value in log.values())


def test_a_batch_that_could_not_be_scored_at_all_logs_finite_numbers():
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    log = described(valid=torch.zeros(3, dtype=torch.bool), completion_mask=nothing)
    own = {name: value for name, value in log.items() if not name.startswith("rewards/")}
    assert all(math.isfinite(value) or name == "explained_variance" for name, value in own.items()), own
    assert own["reward"] == own["kl"] == own["completions/mean_length"] == 0


def test_a_function_that_scored_nothing_has_no_mean_and_rows_that_fill_up_are_not_skipped():
    scores = Scores(torch.zeros(2), torch.tensor([[NAN, 1.0], [NAN, NAN]]), torch.tensor([True, False]), {}, {})
    out = with_advantages()
    given = {"rewards": out.scores, "weighted": True, "reduce": one_process}
    log = describe(out, scores, ["a", "b"], torch.zeros(3, 3), count=2, **given)
    assert math.isnan(log["rewards/a/mean"]) and math.isnan(log["rewards/a/std"]) and log["rewards/b/mean"] == 1.0
    assert log["rewards/skipped_fraction"] == 0, "the third sample is the one that was not scored"
    assert scored_by(scores.per_function, ["a", "b"], lambda t: t * 2) == {
        "rewards/a/mean": 0.0, "rewards/a/std": 0.0, "rewards/b/mean": 2.0, "rewards/b/std": 2.0,
    }  # fmt: skip


def test_two_processes_log_what_one_does():
    out, entropy = with_advantages(), torch.rand(3, 3)
    out.weights = torch.rand(3, 3)
    per_function = torch.tensor([[1.0], [4.0], [NAN]])

    def log(rows: list[int], reduce: Callable[..., torch.Tensor]) -> dict[str, float]:
        part = out.select(torch.tensor(rows))
        scores = Scores(part.scores, per_function[rows], part.valid, {}, {})
        given = {"rewards": part.scores, "count": len(part), "weighted": True, "reduce": reduce}
        counts = scored_by(per_function[rows], ["f"], reduce)
        return describe(part, scores, ["f"], entropy[rows, : part.completion_length], **given) | counts

    one = log([0, 1, 2], one_process)
    assert on_two(lambda number, reduce: log([[0, 2], [1]][number], reduce)) == [pytest.approx(one, abs=1e-5)] * 2


def test_rewards_by_name_with_none_where_there_is_none():
    scores = Scores(torch.zeros(2), torch.tensor([[1.0, NAN], [2.5, -3.0]]), torch.ones(2).bool(), {}, {})
    assert named_rewards(scores, ["length", "tone"]) == {"length": [1.0, 2.5], "tone": [None, -3.0]}


def equal_scores(valid: int = 3, **more: Any) -> Scores:
    return Scores(torch.full((3,), 0.1), torch.full((3, 1), 0.1), torch.arange(3) < valid, {}, {}, **more)


def test_a_rollout_of_equal_rewards_is_warned_of_once():
    same, warned = {"reward": 0.1, "reward_std": 1e-9}, set()
    with pytest.warns(UserWarning, match="All completions of a rollout have the same reward, 0.1, so the policy"):
        warn_of_equal_rewards(same, equal_scores(), warned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_equal_rewards({"reward": 0.2, "reward_std": 0.0}, equal_scores(), warned)


@pytest.mark.parametrize(
    ("scores", "metrics"),
    [
        (equal_scores(), {"reward_std": 0.01}),
        (equal_scores(valid=1), {}),  # one completion has no other to be told from
        (equal_scores(learned=torch.arange(3.0)), {}),  # a bound says more
        (equal_scores(tokens=torch.eye(3)), {}),  # the places of the rewards differ
        (equal_scores(), {"rewards/skipped_fraction": 1.0}),
    ],
)
def test_a_rollout_that_teaches_something_is_not_warned_of(scores: Scores, metrics: dict[str, float]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_equal_rewards({"reward": 0.1, "reward_std": 0.0} | metrics, scores, set())
