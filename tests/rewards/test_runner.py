# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import asyncio
import functools
import json
import math
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

from trl_ext.rewards import (
    PreferenceReward,
    RewardRunner,
    RunningNormalization,
    ToxicityReward,
    WeightedSum,
    calling,
    retry,
)
from trl_ext.rewards.base import JUDGE, Synchronized
from trl_ext.rewards.logged import combined

NAN = math.nan


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.001)


def length(completions, **columns):
    return [float(len(completion)) for completion in completions]


def value(completions, **columns):
    return [float(completion) if completion else None for completion in completions]


def run(runner, completions, columns=None, **options):
    n = len(completions)
    prompts = [f"p{i}" for i in range(n)]
    return runner(prompts, completions, [[1]] * n, columns or {}, **options)


def returns(result):
    def fixed(completions, **columns):
        return result

    return fixed


# What is added up


def test_total_is_the_weighted_sum_over_functions_that_apply():
    scores = run(RewardRunner([length, value], weights=[2.0, -1.0]), ["10", "", "7"])
    assert scores.total.tolist() == [2 * 2 - 10, 0.0, 2 * 1 - 7]
    assert scores.total.dtype == torch.float32
    assert scores.per_function.shape == (3, 2)
    assert scores.per_function.nan_to_num(nan=-99).tolist() == [[2, 10], [0, -99], [1, 7]]
    assert scores.valid.tolist() == [True, True, True]
    assert scores.metrics == {}


def test_clip_range_limits_the_total_and_not_the_functions():
    scores = run(RewardRunner(value, clip_range=(-1, 2)), ["-5", "1", "9"])
    assert scores.total.tolist() == [-1, 1, 2]
    assert scores.per_function[:, 0].tolist() == [-5, 1, 9]


def test_samples_without_a_reward_are_skipped_with_one_warning():
    runner = RewardRunner([value, value], clip_range=(1, 5))
    with pytest.warns(UserWarning, match="returned None for sample 1.*'p1'") as caught:
        scores = run(runner, ["3", "", ""])
        run(runner, ["", "2"])
    assert len(caught) == 1
    assert scores.valid.tolist() == [True, False, False]
    assert scores.total.tolist() == [5, 0, 0]  # 0 where skipped, whatever the range


def test_names_are_unique():
    assert RewardRunner([length, length, value, length]).names == ["length", "length_2", "value", "length_3"]
    assert RewardRunner(functools.partial(length, a=1)).names == ["length"]


@pytest.mark.parametrize("number", [True, np.float32(1), np.int64(1), np.bool_(True), torch.tensor(1), np.array(1.0)])
def test_numbers_of_other_types_are_accepted(number):
    assert run(RewardRunner(returns([number])), ["x"]).total.tolist() == [1.0]


@pytest.mark.parametrize("result", [torch.ones(2, dtype=torch.bfloat16), np.ones(2), (1, 1), iter([1, 1])])
def test_results_of_other_types_are_accepted(result):
    assert run(RewardRunner(returns(result)), ["x", "y"]).total.tolist() == [1.0, 1.0]


def test_an_empty_batch_is_no_error():
    scores = run(RewardRunner([length, value]), [])
    assert scores.total.shape == (0,)
    assert scores.per_function.shape == (0, 2)


# What a function is called with


def test_a_function_without_kwargs_gets_what_it_names():
    def picky(completions, topic, trainer_state=None):
        return [len(name) + trainer_state for name in topic]

    columns = {"topic": ["a", "bcd"], "other": [1, 2], "prompt": ["x", "y"], "completion": ["x", "y"]}
    assert run(RewardRunner(picky), ["x", "y"], columns, trainer_state=10).total.tolist() == [11, 13]


def test_a_missing_column_is_named_and_not_retried():
    calls = []

    def needs(completions, solution, **columns):
        calls.append(1)
        return [0.0]

    with pytest.raises(TypeError, match=r"'needs' asks for \['solution'\].*'topic'"):
        run(RewardRunner(needs), ["x"], {"topic": ["a"]})
    assert not calls


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="'topic': 1.*'prompts': 2"):
        run(RewardRunner(length), ["x", "y"], {"topic": ["a"]})


def test_functions_log_metrics_and_columns():
    def logs(completions, log_extra, log_metric, **columns):
        log_extra("upper", [text.upper() for text in completions])
        log_metric("n", 1)
        log_metric("n", 2)
        return length(completions)

    scores = run(RewardRunner([logs, length]), ["a", "b"])
    assert scores.metrics["n"] == 1.5
    assert scores.extra == {"upper": ["A", "B"]}

    def logs_too_few(completions, log_extra, **columns):
        log_extra("upper", ["A"])
        return length(completions)

    with pytest.raises(ValueError, match="'logs_too_few' logged 1 values.*2 completions"):
        run(RewardRunner(logs_too_few), ["a", "b"])


def test_logged_values_weigh_as_many_samples_as_their_call_had():
    assert combined("n", [(1.0, 3.0), (5.0, 1.0)]) == (2.0, 4.0)
    assert combined("a/max", [(1.0, 3.0), (5.0, 1.0)]) == (5.0, 4.0)
    assert combined("a/min", [(1.0, 3.0), (5.0, 1.0)]) == (1.0, 4.0)
    assert combined("a/mean", [(1.0, 3.0), (5.0, 1.0)]) == (2.0, 4.0)


def test_progress_adds_up_to_samples_times_functions(classifier, tokenizer):
    toxicity = ToxicityReward(classifier(["neutral", "toxic"]), tokenizer=tokenizer, batch_size=2)
    steps: list[int] = []
    run(RewardRunner([toxicity, WeightedSum([toxicity, toxicity]), length]), ["a", "b", "c"], on_progress=steps.append)
    assert steps == [2, 1, 2, 1, 3]


def test_trl_functions_run_unchanged():
    runner = RewardRunner([get_repetition_penalty_reward(2), get_soft_overlong_punishment(4, 2)])
    scores = runner(["", ""], ["", ""], [[5, 5, 5, 5, 5], [1, 2, 3]], {"answer": [1, 2]})
    assert runner.names == ["repetition_penalty_reward", "soft_overlong_punishment_reward"]
    assert scores.per_function.tolist() == [[-0.75, -1.0], [0.0, -0.5]]
    chat = [[{"role": "assistant", "content": text}] for text in ("<think>a</think>b", "c")]
    prompts = [[{"role": "user", "content": "q"}]] * 2
    assert RewardRunner(think_format_reward)(prompts, chat, [[1], [1]], {}).total.tolist() == [1.0, 0.0]


# Contract violations: refused at once


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        ([1.0], ValueError, "'fixed' returned 1 rewards for 2 completions"),
        ([1.0, 2.0, 3.0], ValueError, "returned 3 rewards for 2 completions"),
        ([1.0, NAN], ValueError, "nan for sample 1.*None"),
        ([-math.inf, 1.0], ValueError, "-inf for sample 0"),
        ([1.0, 1e39], ValueError, r"1e\+39 for sample 1"),
        (torch.tensor([1.0, NAN]), ValueError, "nan for sample 1"),
        (["0.5", 1.0], TypeError, r"'0.5' \(str\) for sample 0"),
        ([1.0, [2.0, 1.0]], ValueError, "2 token rewards for sample 1"),
        ([1j, 1.0], TypeError, "complex"),
        (torch.ones(2, 1), TypeError, r"shape \(2, 1\)"),
        (torch.tensor(1.0), TypeError, r"shape \(\)"),
        (0.5, TypeError, r"0.5 \(float\).*return a list"),
        (None, TypeError, "NoneType"),
        ("ab", TypeError, "'ab'"),
        ({"a": 1, "b": 2}, TypeError, "dict"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda fn: fn, lambda fn: WeightedSum([fn])], ids=["plain", "inside"])
def test_a_broken_contract_is_refused_at_once(result, error, message, wrap):
    calls = []

    def fixed(completions, **columns):
        calls.append(1)
        return result

    with pytest.raises(error, match=message):
        run(RewardRunner(wrap(fixed)), ["x", "y"])
    assert len(calls) == 1


# Failures: retried, then skipped, then the end


class Flaky:
    """Raises at its first calls, and always on some completions."""

    def __init__(self, fails=0, poison=(), error=None):
        self.fails, self.poison, self.error = fails, set(poison), error or RuntimeError("no luck")
        self.sizes = []
        self.__name__ = "flaky"

    def __call__(self, completions, **columns):
        self.sizes.append(len(completions))
        if len(self.sizes) <= self.fails or self.poison & set(completions):
            raise self.error
        return length(completions)


class AsyncFlaky(Flaky):
    async def __call__(self, completions, **columns):
        await asyncio.sleep(0)
        return super().__call__(completions)


def test_a_passing_failure_is_retried_without_a_trace():
    flaky = Flaky(fails=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = run(RewardRunner(flaky), ["a", "bb"])
    assert scores.total.tolist() == [1, 2]
    assert flaky.sizes == [2, 1, 1, 1]


@pytest.mark.parametrize("kind", [Flaky, AsyncFlaky])
def test_the_culprits_are_found_and_skipped(kind):
    flaky = kind(poison=["xxx"])
    runner = RewardRunner([flaky, length], retries=1, max_reward_failures=0.25)
    with pytest.warns(UserWarning, match="'flaky' failed on 1 of 4 samples.*'p2'.*'xxx'.*RuntimeError: no luck"):
        scores = run(runner, ["a", "bb", "xxx", "dddd"])
    assert scores.valid.tolist() == [True, True, False, True]
    assert scores.total.tolist() == [2, 4, 0, 8]
    assert scores.per_function[:, 0].isnan().tolist() == [False, False, True, False]
    assert sorted(flaky.sizes) == [1, 1, 1, 1, 4]


@pytest.mark.parametrize("kind", [Flaky, AsyncFlaky])
def test_the_run_stops_when_too_many_fail(kind):
    runner = RewardRunner(kind(poison=["x", "y"]), retries=1, max_reward_failures=0.25)
    with pytest.raises(RuntimeError, match=r"'flaky' failed on at least 2 of 4 .*1 retries.*0.25.*no luck") as caught:
        run(runner, ["x", "y", "c", "d"])
    assert str(caught.value.__cause__) == "no luck"


def test_a_hopeless_function_is_not_called_for_every_sample():
    flaky = Flaky(fails=1000)
    with pytest.raises(RuntimeError):
        run(RewardRunner(flaky, retries=0), ["c"] * 100)
    assert flaky.sizes == [100] + [1] * 11


def test_failures_of_several_functions_are_all_skipped():
    runner = RewardRunner([Flaky(poison=["x"]), Flaky(poison=["y"])], retries=0, max_reward_failures=0.5)
    with pytest.warns(UserWarning):
        scores = run(runner, ["x", "y", "c"])
    assert scores.valid.tolist() == [False, False, True]


def test_what_failed_calls_logged_is_dropped():
    def logs(completions, log_extra, log_metric, **columns):
        log_metric("calls", len(completions))
        log_extra("text", completions)
        if "x" in completions:
            raise RuntimeError("no luck")
        return length(completions)

    runner = RewardRunner(logs, retries=1, max_reward_failures=0.5)
    with pytest.warns(UserWarning):
        scores = run(runner, ["a", "x", "c"])
    assert scores.metrics["calls"] == 1
    assert scores.extra == {"text": ["a", None, "c"]}


def test_an_interrupt_is_not_a_failure():
    with pytest.raises(KeyboardInterrupt):
        run(RewardRunner(Flaky(fails=9, error=KeyboardInterrupt())), ["a"])


# Time


def test_a_slow_call_is_a_failure_that_says_timeout():
    release = threading.Event()

    def hangs(completions, **columns):
        release.wait(20)
        return length(completions)

    async def sleeps(completions, **columns):
        await asyncio.sleep(20)
        return length(completions)

    for fn in (hangs, sleeps):
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="1 of 1 .*timeout: no result within 0.05 s"):
            run(RewardRunner(fn, retries=0, timeout=0.05), ["a"])
        assert time.monotonic() - start < 15
    release.set()


@pytest.mark.parametrize("timeout", [None, 30])
def test_quick_calls_are_not_touched_by_the_timeout(timeout):
    async def quick(completions, **columns):
        return length(completions)

    assert run(RewardRunner([length, quick], timeout=timeout), ["a"]).total.tolist() == [2.0]


def test_a_functions_own_timeout_keeps_its_message():
    async def own(completions, **columns):
        raise TimeoutError("the judge is busy")

    with pytest.raises(RuntimeError, match="the judge is busy"):
        run(RewardRunner(own, retries=0, timeout=30), ["a"])


def test_async_functions_run_at_the_same_time_as_all_others():
    started = set()

    def meets(name, others):
        async def fn(completions, **columns):
            started.add(name)
            while not others <= started:
                await asyncio.sleep(0.001)
            return length(completions)

        return fn

    def sync(completions, **columns):
        deadline = time.monotonic() + 20
        while not {"a", "b"} <= started:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        started.add("sync")
        return length(completions)

    # none of them ends before the others have begun
    runner = RewardRunner([meets("a", {"b", "sync"}), sync, meets("b", {"a", "sync"})])
    assert run(runner, ["x"]).total.tolist() == [3.0]


def test_it_works_inside_a_running_loop_and_keeps_one_loop():
    loops = []

    class Judge:
        async def __call__(self, completions, **columns):
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return length(completions)

    async def notebook():
        return run(RewardRunner(Judge()), ["x"])

    assert RewardRunner(Judge()).names == ["Judge"]
    assert asyncio.run(notebook()).total.tolist() == [1.0]
    run(RewardRunner(Judge()), ["x"])
    assert loops[0] is loops[1]  # clients bound to their first loop go on working


# State


def test_state_round_trip_continues_identically():
    def build():
        return RewardRunner([RunningNormalization(value), length, RunningNormalization(length)])

    first = build()
    run(first, ["1", "5", "20"])
    state = json.loads(json.dumps(first.state_dict()))
    assert list(state) == ["normalized_value", "normalized_length"]
    second = build()
    second.load_state_dict(state)
    for batch in (["4", "77"], ["6"]):
        assert torch.equal(run(second, batch).total, run(first, batch).total)
    with pytest.raises(ValueError, match=r"normalized_value.*\[\]"):
        RewardRunner(length).load_state_dict(state)


def test_evaluation_leaves_the_state_alone():
    runner = RewardRunner(RunningNormalization(value))
    run(runner, ["1", "5", "20"])
    state = runner.state_dict()
    before = run(runner, ["1000", "-1000"], update_state=False)
    assert runner.state_dict() == state
    assert torch.equal(run(runner, ["1000", "-1000"]).total, before.total)
    assert runner.state_dict() != state


def test_a_retry_counts_no_sample_twice():
    normalized = RunningNormalization(value)
    flaky = Flaky(fails=1)
    run(RewardRunner(WeightedSum([normalized, flaky])), ["1", "2"])
    assert normalized.moments.n == 2
    runner = RewardRunner(WeightedSum([normalized, Flaky(poison=["44"])]), retries=1, max_reward_failures=0.5)
    with pytest.warns(UserWarning, match="failed on 1 of 3"):
        run(runner, ["3", "44", "5"])
    assert normalized.moments.n == 4
    assert normalized.moments.mean == pytest.approx((1 + 2 + 3 + 5) / 4)


# Models


def test_models_and_names_become_preference_rewards(classifier, tokenizer, saved, raw_logits):
    model = classifier(["LABEL_0"])
    name = saved(model)
    expected = raw_logits(model, ["p0a b", "p1day"])[:, 0]
    runner = RewardRunner([name, model, length], processing_classes=[None, tokenizer, None])
    assert runner.names == ["tiny-model", "BertForSequenceClassification", "length"]
    scores = run(runner, ["a b", "day"])
    torch.testing.assert_close(scores.per_function[:, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.per_function[:, 1], expected, atol=1e-5, rtol=0)
    assert isinstance(runner.reward_funcs[0], PreferenceReward)
    assert RewardRunner([model, model], processing_classes=tokenizer, device="cpu").names[1].endswith("_2")


def test_chat_template_kwargs_reach_the_model(classifier, tokenizer, raw_logits):
    model = classifier(["LABEL_0"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}{{ ending }}"
    runner = RewardRunner(model, processing_classes=tokenizer, chat_template_kwargs={"ending": "bad day"})
    chats = [[{"role": "user", "content": "a"}]], [[{"role": "assistant", "content": "b"}]]
    expected = raw_logits(model, ["a b bad day"], add_special_tokens=False)[:, 0]
    torch.testing.assert_close(runner(*chats, [[1]], {}).total, expected, atol=1e-5, rtol=0)


def test_a_wrong_model_fails_before_the_run(classifier, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded"):
        RewardRunner(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="has 2"):
        RewardRunner(classifier(["a", "b"]), processing_classes=tokenizer)


@pytest.mark.parametrize(
    ("sources", "options", "error", "message"),
    [
        ([], {}, ValueError, "empty"),
        ([3], {}, TypeError, r"3 \(int\)"),
        ([length, value], {"weights": [1.0]}, ValueError, "1 reward weights for 2"),
        ([length], {"processing_classes": [None, None]}, ValueError, "2 reward processing classes for 1"),
        ([length], {"retries": -1}, ValueError, "retries=-1"),
        ([length], {"timeout": 0}, ValueError, "timeout=0"),
        ([length], {"max_reward_failures": 1.5}, ValueError, "max_reward_failures=1.5"),
        ([length], {"clip_range": (2, 1)}, ValueError, r"\(2, 1\)"),
    ],
)
def test_options_are_checked(sources, options, error, message):
    with pytest.raises(error, match=message):
        RewardRunner(sources, **options)


def test_any_synchronized_function_is_merged_once_a_batch():
    class Counting:
        __name__ = "counting"
        synchronize_each_call = True

        def __init__(self):
            self.merged = 0

        def synchronize(self):
            self.merged += 1

        def __call__(self, completions, **columns):
            assert not self.synchronize_each_call, "a runner merges once a batch"
            return [1.0] * len(completions)

    counting = Counting()
    assert isinstance(counting, Synchronized) and isinstance(RunningNormalization(value), Synchronized)
    runner = RewardRunner(WeightedSum([counting, value]))
    run(runner, ["1", "2"])
    run(runner, ["3"], update_state=False)
    assert counting.merged == 1
    assert counting.synchronize_each_call is True, "direct calls merge as before"


def test_a_judge_whose_unit_moves_is_refused():
    with pytest.raises(ValueError, match="Judge '.*' measures in units that move with the training"):
        RewardRunner(WeightedSum([value, RunningNormalization(value)]), kind=JUDGE)


@pytest.mark.parametrize("kind", ["late", "async"])
def test_reward_functions_run_with_the_cuda_device_of_their_process(kind, monkeypatch):
    """A new thread begins with device 0, which is that of another process."""
    device = threading.local()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(device, "number", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: setattr(device, "number", number))
    monkeypatch.setattr(calling, "_event_loop", functools.cache(calling._event_loop.__wrapped__))
    torch.cuda.set_device(3)

    def on_device(completions, **columns):
        return [float(torch.cuda.current_device())] * len(completions)

    async def waiting(completions, **columns):
        return on_device(completions)

    function = on_device if kind == "late" else waiting
    assert run(RewardRunner(function, timeout=5.0), ["a", "b"]).total.tolist() == [3.0, 3.0]
