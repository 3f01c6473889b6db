# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The correction for the engine: weights by hand, the gap that is logged, and when a run is warned or stopped."""

import math
import warnings
from typing import Any

import pytest
import torch

from tests import scripted
from tests.two_threads import on_two
from trl_ext.experience.engine_gap import STALE_FACTOR, GapOptions, correct, importance_weights
from trl_ext.experience.rollout import Rollout, collate


def rollout() -> Rollout:
    """Two tokens, three tokens, and a completion that was not scored."""
    out = collate([[5], [5, 6], [7]], [[8, 2], [8, 9, 10], [11]], [True, False, True], pad_token_id=0)
    out.valid = torch.tensor([True, True, False])
    out.completion_mask[2] = False
    out.old_logps = torch.tensor([[-1.0, -2.0, 0.0], [-1.0, -1.0, -3.0], [0.0] * 3])
    return out


def test_importance_weights_by_hand():
    out = rollout()
    out.completion_mask[1, 1] = False
    engine = [[-1.0 - math.log(1.5), -2.0 + math.log(4)], [-1.0 - math.log(5), -50.0, -3.0], [-9.0]]
    weights = importance_weights(out, engine, cap=2.0)
    expected = [[1.5, 0.25, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert torch.allclose(weights, torch.tensor(expected), atol=1e-5)


def test_tokens_are_left_out_by_their_ratio_before_the_cap() -> None:
    """Ratios 0.4, 0.6, 1, 2.5 and 4; the cap is below the upper end of the range, which 4 is out of all the same."""
    out = rollout()
    ratios = [[0.4, 0.6], [1.0, 2.5, 4.0], [9.0]]
    engine = [
        [old - math.log(ratio) for old, ratio in zip(*pair, strict=False)]
        for pair in zip(out.old_logps.tolist(), ratios, strict=True)
    ]
    weights = importance_weights(out, engine, cap=2.0, ratio_range=[0.5, 3.0])
    assert torch.allclose(weights, torch.tensor([[0.0, 0.6, 1.0], [1.0, 2.0, 0.0], [1.0, 1.0, 1.0]]))


def test_importance_weights_stay_finite_and_take_empty_completions():
    out = rollout()
    weights = importance_weights(out, [[-1e6, -2.0], [-1.0, -1.0, 1e6], []], cap=1e4)
    assert weights.isfinite().all() and weights[0].tolist() == [1e4, 1.0, 1.0] and weights[1, 2] == 0
    assert weights.dtype == torch.float32


# Log-probabilities of an engine: gaps 0.5, 0, 1, 0 and 0 nats in the five tokens that count, and one that does not.
ENGINE = [[-1.5, -2.0], [-2.0, -1.0, -3.0], [-50.0]]


def corrected(out: Rollout | None = None, *, stale: bool = False, **changes: Any) -> dict[str, float]:
    options: dict[str, Any] = {
        "importance_sampling_cap": 2.0,
        "mask_ratio_range": None,
        "max_engine_gap": None,
        "max_engine_capped": None,
        "same_distribution": True,
    }
    options = GapOptions(**(options | changes))  # type: ignore[assignment]
    return correct(out or rollout(), ENGINE, options, reduce=lambda t: t, step=7, stale=stale)  # type: ignore[arg-type]


def test_the_gap_is_the_mean_over_tokens_and_the_weights_are_filled_in() -> None:
    out = rollout()
    assert corrected(out) == pytest.approx({"engine/logp_gap": 1.5 / 5, "engine/capped_fraction": 1 / 5})
    assert torch.allclose(out.weights, torch.tensor([[math.exp(0.5), 1, 1], [2.0, 1, 1], [1, 1, 1]]))


def test_the_gap_is_that_of_all_processes() -> None:
    def measured(number: int, reduce: Any) -> dict[str, float]:
        out, limits = rollout(), GapOptions(2.0, None, None, None, True)
        out.completion_mask[number] = False  # the first has the gaps 1, 0 and 0; the second 0.5 and 0
        return correct(out, ENGINE, limits, reduce=reduce, step=7)

    both = {"engine/logp_gap": 1.5 / 5, "engine/capped_fraction": 1 / 5}
    assert on_two(measured) == [pytest.approx(both)] * 2


def test_an_engine_without_log_probabilities_cannot_be_corrected_for() -> None:
    with pytest.raises(RuntimeError, match="no log-probabilities .* set `importance_sampling_correction=False`"):
        correct(rollout(), None, None, reduce=lambda t: t, step=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_engine_gap": 0.2}, "the mean gap, in nats, is 0.3, more than `max_engine_gap` 0.2; give"),
        ({"max_engine_capped": 0.1}, "the share of tokens with a capped weight is 0.2, more than `max_engine_capped`"),
    ],
)
def test_a_gap_beyond_its_limit_is_a_warning_and_beyond_four_times_it_the_end(limits: Any, words: str) -> None:
    start = "^Step 7: between the log-probabilities of the sampling engine and of the policy, "
    with pytest.warns(UserWarning, match=start + words):
        corrected(**limits)
    name, limit = next(iter(limits.items()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrected(**{name: limit * 2})
        corrected(**{name: limit / 3}, same_distribution=False)
    with pytest.raises(RuntimeError, match=f"{start}.* more than 4 times `{name}` .*: the engine has not sampled"):
        corrected(**{name: limit / 3})


def test_a_rollout_from_older_weights_has_wider_limits_and_another_remedy() -> None:
    """A gap of 0.3 nats."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrected(max_engine_gap=0.31 / STALE_FACTOR, stale=True)
    words = rf"is 0.3, more than 0.2, which is {STALE_FACTOR} times `max_engine_gap` since .*; lower `learning_rate`"
    with pytest.warns(UserWarning, match=words):
        corrected(max_engine_gap=0.2 / STALE_FACTOR, stale=True)
    words = rf"is 0.3, more than 4 times 0.07, which is {STALE_FACTOR} times `max_engine_gap` .*: the engine has not"
    with pytest.raises(RuntimeError, match=words):
        corrected(max_engine_gap=0.07 / STALE_FACTOR, stale=True)


def test_a_gap_of_merged_weights_names_the_option_that_merges_them() -> None:
    with pytest.warns(
        UserWarning, match="; leave `merge_adapters_while_sampling` out \\(the run stops at 4 times that"
    ):
        corrected(max_engine_gap=0.2, merges_while_sampling=True)
    with pytest.raises(RuntimeError, match="too coarse for merged weights; leave `merge_adapters_while_sampling` out"):
        corrected(max_engine_gap=0.05, merges_while_sampling=True)


class OtherModel(scripted.ScriptedEngine):
    """An engine whose log-probabilities are those of another model."""

    def __call__(self, *args: Any) -> Any:
        out = super().__call__(*args)
        return out._replace(logps=[[-0.1] * len(row) for row in out.ids])


def test_a_run_whose_engine_samples_from_other_weights_stops(tmp_path: Any) -> None:
    made = scripted.trainer(tmp_path, importance_sampling_correction=True)
    made.generation_engine = OtherModel()
    with pytest.raises(RuntimeError, match="^Step 0: .* the engine has not sampled from this policy"):
        made.train()
    assert made.state.global_step == 0
