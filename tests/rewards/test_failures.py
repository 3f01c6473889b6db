# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What counts as a failure of a reward function, and which calls a failure costs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from tests.launching import python_path
from trl_ext.rewards import (
    PAR,
    Ensemble,
    LengthDebiased,
    RewardRunner,
    RunningNormalization,
    WeightedSum,
    check_reward,
    retry,
)
from trl_ext.rewards.base import Batch
from trl_ext.rewards.failures import Failures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF_SECONDS", 0.0)


def run(rewards, completions, **options):
    runner = RewardRunner(rewards, **{"backoff": 0.0, "max_reward_failures": 0.5, **options})
    return runner(["p"] * len(completions), completions, [[1]] * len(completions), {})


def value(completions, **columns):
    return [float(completion) for completion in completions]


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no message either")


class Panic(BaseException):
    """As an extension in Rust raises it."""


def exits(completions):
    sys.exit(0)


def parses(completions):
    import argparse

    argparse.ArgumentParser(exit_on_error=True).parse_args(["--unknown"])


def recurses(completions):
    return recurses(completions)


def raises(error):
    def fn(completions):
        raise error

    return fn


# Errors that are no `Exception`, or no ordinary one

BAD = {
    "exit": exits,
    "argparse": parses,
    "cancelled": raises(asyncio.CancelledError()),
    "panic": raises(Panic("thread panicked")),
    "stop iteration": raises(StopIteration(3)),
    "unspeakable": raises(Unspeakable()),
    "recursion": recurses,
    "memory": raises(MemoryError()),
    "warning": raises(UserWarning("careful")),
    "group": raises(BaseExceptionGroup("several", [SystemExit(1), ValueError("x")])),
    "timeout": raises(TimeoutError()),
    "interrupt": raises(KeyboardInterrupt()),
}


CASES = [
    (name, kind)
    for name in BAD
    for kind in ("sync", "async", "subtask", "timed", "generator", "in a sum")
    # in the main thread it may be the user's, see below
    if name != "interrupt" or kind in ("async", "subtask", "timed")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_whatever_is_raised_costs_that_sample_alone(name, kind):

    def score(completions):
        if "bad" in completions:
            BAD[name](completions)
        return [1.0] * len(completions)

    def fn(completions, **columns):
        return score(completions)

    async def later(completions, **columns):
        await asyncio.sleep(0)
        return score(completions)

    async def in_a_task(completions, **columns):
        return (await asyncio.gather(asyncio.create_task(later(completions)), asyncio.sleep(0)))[0]

    def lazily(completions, **columns):
        yield from score(completions)

    reward = {"sync": fn, "timed": fn, "async": later, "subtask": in_a_task, "generator": lazily}.get(kind)
    reward = reward or WeightedSum([fn, later])
    start = time.monotonic()
    with pytest.warns(UserWarning, match=r"failed on 1 of 3 samples, which are skipped; sample 1 \(prompt 'p'"):
        scores = run(reward, ["good", "bad", "fine"], retries=1, timeout=20 if kind == "timed" else None)
    assert scores.valid.tolist() == [True, False, True]
    assert time.monotonic() - start < 10

    async def works(completions, **columns):  # the loop serves the next one
        return [2.0] * len(completions)

    assert run(works, ["a"]).total.tolist() == [2.0]


def test_a_function_that_always_exits_stops_the_run_with_its_name():
    with pytest.raises(RuntimeError, match=r"'exits' failed .* gave SystemExit: 0"):
        run(exits, ["a", "b"], retries=0)


def test_exceptions_without_a_message_and_with_too_much_of_one():
    with pytest.raises(RuntimeError, match=r"gave Unspeakable: \(no message\)\. Fix"):
        run(raises(Unspeakable()), ["a"], retries=0)
    hostile = "\x1b[2J\x1b]0;owned\x07first\r\nsecond\u202e\u200b " + "x" * 5000 + " https://me:pw@host/?token=abc"
    with pytest.raises(RuntimeError) as raised:
        run(raises(ValueError(hostile)), ["a"], retries=0)
    message = str(raised.value)
    assert "ValueError: first second xxx" in message and len(message) < 1000
    assert not set(message) & set("\x1b\x07\r\n\u202e\u200b") and "owned" not in message
    with pytest.raises(RuntimeError) as raised:
        run(raises(ValueError("429 for https://me:pw@host/v1?api_key=abc&n=1")), ["a"], retries=0)
    assert "429 for https://(hidden)@host/v1?api_key=(hidden)&n=1" in str(raised.value)


def test_check_reward_names_what_exits():
    with pytest.raises(ValueError, match=r"'exits' failed on a sample \(line \d+ of '\w+\.py' raises SystemExit: 0\)"):
        check_reward(exits)

    def gives_exceptions(completions, **columns):
        return [ValueError("no luck")] * len(completions)

    with pytest.raises(ValueError, match=r"'gives_exceptions' failed on a sample \(ValueError: no luck\)"):
        check_reward(gives_exceptions)


def test_an_interrupt_that_the_function_swallows_still_stops_the_run():
    def swallows(completions, **columns):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except BaseException:
            pass
        return [1.0] * len(completions)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(swallows, ["a"])
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_ends_the_process():
    """A real SIGINT to real processes, while they wait for a reward."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    script = Path(__file__).with_name("interrupted.py")
    out = subprocess.run([sys.executable, str(script)], check=True, env=environment, capture_output=True, text=True)
    ends = json.loads(out.stdout)
    assert {kind: status for kind, (status, _) in ends.items()} == dict.fromkeys(ends, 1), out.stderr
    assert out.stderr.count("interrupted") == len(ends) and "not interrupted" not in out.stderr
    assert max(seconds for _, seconds in ends.values()) < 60


# Which calls a failure costs


class Counts:
    """Raises where a completion is "bad", and keeps what it was called with."""

    def __init__(self, bad=("bad",), times=10**6):
        self.bad, self.times, self.calls = set(bad), times, []
        self.__name__ = "counts"

    def __call__(self, completions, **columns):
        self.calls.append(list(completions))
        if self.bad & set(completions) and self.times > 0:
            self.times -= 1
            raise RuntimeError("no luck")
        return [1.0] * len(completions)


def test_only_what_failed_is_tried_again():
    counts = Counts()
    with pytest.warns(UserWarning, match="failed on 1 of 3"):
        scores = run(counts, ["a", "bad", "c"], retries=2)
    assert counts.calls == [["a", "bad", "c"], ["a"], ["bad"], ["c"], ["bad"]]
    assert scores.valid.tolist() == [True, False, True]


class Tells(Counts):
    """Returns an exception for each completion that is "bad"."""

    def __call__(self, completions, **columns):
        self.calls.append(list(completions))
        self.times -= 1
        error = RuntimeError("no luck")
        return [error if self.times >= 0 and c in self.bad else float(len(c)) for c in completions]


class TellsLater(Tells):
    async def __call__(self, completions, **columns):
        return super().__call__(completions)


@pytest.mark.parametrize("kind", [Tells, TellsLater])
def test_exceptions_in_the_place_of_rewards_are_tried_again_together(kind):
    tells = kind(["bad", "worse"])
    with pytest.warns(UserWarning, match="failed on 2 of 4 samples.*RuntimeError: no luck"):
        scores = run(tells, ["a", "bad", "cc", "worse"], retries=2)
    assert tells.calls == [["a", "bad", "cc", "worse"], ["bad", "worse"], ["bad", "worse"]]
    assert scores.valid.tolist() == [True, False, True, False] and scores.total.tolist() == [1, 0, 2, 0]
    tells = kind(["bad"], times=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(tells, ["a", "bad"], retries=1).total.tolist() == [1, 3]
    assert tells.calls == [["a", "bad"], ["bad"]]


def test_without_retries_an_exception_in_the_place_of_a_reward_is_final():
    tells = Tells()
    with pytest.warns(UserWarning, match="failed on 1 of 2"):
        run(tells, ["a", "bad"], retries=0)
    assert tells.calls == [["a", "bad"]]


def test_failing_results_of_gather_are_samples():
    async def judge(completion):
        if completion == "bad":
            sys.exit("quota")
        return float(len(completion))

    async def judges(completions, **columns):
        return await asyncio.gather(*map(judge, completions), return_exceptions=True)

    with pytest.warns(UserWarning, match="failed on 1 of 3 samples.*SystemExit: quota"):
        assert run(judges, ["a", "bad", "cc"], retries=1).total.tolist() == [1, 0, 2]


@pytest.mark.parametrize("kind", [Counts, Tells, TellsLater])
def test_the_failure_of_a_member_costs_no_call_of_the_others(kind):
    fails, dear = kind(), Counts(bad=())
    with pytest.warns(UserWarning, match="'weighted_sum' failed on 1 of 3"):
        scores = run(WeightedSum([dear, RunningNormalization(fails)]), ["a", "bad", "c"], retries=2)
    assert dear.calls == [["a", "bad", "c"]]
    assert scores.valid.tolist() == [True, False, True]


def test_no_sample_counts_twice_in_running_statistics():
    """Members that succeed, fail for a while and fail for good, and combinations around them."""
    for flaky in (Counts(["44"], times=1), Tells(["44"], times=1), TellsLater(["44"], times=2)):
        normalized, debiased = RunningNormalization(value), LengthDebiased(value)
        reward = RunningNormalization(Ensemble([normalized, debiased, flaky]))
        run(reward, ["3", "44", "5"], retries=3)
        assert (normalized.moments.n, debiased.line.n, reward.moments.n) == (3, 3, 3)
        assert normalized.moments.mean == pytest.approx((3 + 44 + 5) / 3)
    normalized = RunningNormalization(value)
    with pytest.warns(UserWarning):
        run(RunningNormalization(WeightedSum([normalized, Tells(["44"])])), ["3", "44", "5"], retries=1)
    assert normalized.moments.n == 2 and normalized.moments.mean == 4  # only samples that have a reward


def test_a_stateful_function_learns_from_each_call_that_succeeded_once():
    class Learns(Counts):
        seen = 0

        def __call__(self, completions, **columns):
            for completion in completions:
                self.seen += 1
                super().__call__([completion])
            return [1.0] * len(completions)

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    learns = Learns()
    with pytest.warns(UserWarning):
        run(learns, ["a", "b", "bad"], retries=1)
    assert learns.seen == 2


def test_references_that_cannot_be_scored_cost_their_sample():
    par = PAR(Counts(["awful"]), reference_column="gold")
    runner = RewardRunner(par, retries=1, backoff=0, max_reward_failures=0.5)
    with pytest.warns(UserWarning, match="'par_counts' failed on 1 of 2"):
        scores = runner(["p"] * 2, ["a", "b"], [[1]] * 2, {"gold": ["fine", "awful"]})
    assert scores.total.tolist() == [0.5, 0] and scores.valid.tolist() == [True, False]


def test_backoff_doubles_up_to_a_minute(monkeypatch):
    waits: list[float] = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            if timeout is not None:
                waits.append(timeout)
            return super().wait(0)

    monkeypatch.setattr(retry.threading, "Event", Event)
    with pytest.raises(RuntimeError):
        run(Counts(), ["bad"], retries=8, backoff=1.0)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    waits.clear()
    run(Counts(times=0), ["bad"], retries=8, backoff=1.0)
    assert waits == []


def test_columns_and_metrics_of_samples_that_were_tried_apart():
    def logs(completions, log_extra, log_metric, **columns):
        log_extra("text", [c.upper() for c in completions])
        log_metric("size", len(completions))
        return [ValueError("later") if c == "bad" and len(completions) > 1 else 1.0 for c in completions]

    scores = run(logs, ["a", "b", "bad", "d"], retries=1)
    assert scores.extra == {"text": ["A", "B", "BAD", "D"]}
    assert scores.metrics["size"] == (4 * 4 + 1 * 1) / 5  # by samples


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_the_time_limit_holds_for_the_calls_that_a_combination_makes_itself(asynchronous):
    gate = threading.Event()

    def slow(completions):
        """Hangs on references."""
        if "reference" in completions:
            gate.wait(20)
        return [1.0] * len(completions)

    async def slow_async(completions):
        if "reference" in completions:
            await asyncio.sleep(20)
        return [1.0] * len(completions)

    runner = RewardRunner(PAR(slow_async if asynchronous else slow), retries=0, timeout=0.3, max_reward_failures=0.0)
    columns = {"reference_completion": ["reference"]}
    before = time.monotonic()
    try:
        with pytest.raises(RuntimeError, match=r"timeout: no result within 0\.3 s"):
            runner(["p"], ["good"], [[1]], columns)
    finally:
        gate.set()
    assert time.monotonic() - before < 10


def failures(count, share):
    return Failures(count, share, retries=0, kind="Reward function", of_beginnings=False)


def one_more(of, name="f"):
    of.add(name, {0: ValueError("broken")}, Batch(["p"], ["c"], [[1]], {}, {}))


def test_failures_of_one_function_add_up_over_the_calls_of_a_batch_and_are_told_once():
    of = failures(10, 0.3)
    for _ in range(3):
        one_more(of)
    for _ in range(2):
        one_more(of, "g")
    with pytest.warns(UserWarning) as told:
        of.warn()
    assert [str(w.message)[:45] for w in told] == [
        "Reward function 'f' failed on 3 of 10 samples",
        "Reward function 'g' failed on 2 of 10 samples",
    ]
    with pytest.raises(RuntimeError, match="'f' failed on at least 4 of 10 samples"):
        one_more(of)


@pytest.mark.parametrize("share", [0.29, 0.57, 0.58])
def test_a_share_of_a_hundred_samples_is_a_whole_number_of_them(share):
    """All three times 100 are a little less than that in floating point."""
    of, allowed = failures(100, share), round(share * 100)
    assert share * 100 < allowed
    for _ in range(allowed):
        one_more(of)
    with pytest.raises(RuntimeError, match=f"failed on at least {allowed + 1} of 100"):
        one_more(of)
