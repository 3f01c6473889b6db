# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Retries of reward functions, for the samples that failed and no others."""

import copy
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from trl_ext.messages.printable import error_text

from .base import Batch, Outcome, Reward, is_async, is_stateful, read_rewards, reward_name
from .calling import attempt, call_reward, start
from .combine import Combination
from .logged import CallLog
from .sharing import shares_base

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.2  # before the first retry; doubled before each further one
MAX_BACKOFF_SECONDS = 60.0
_ASYNC_SAMPLES = 32  # concurrent calls when an async function is called sample by sample

Call = Callable[[Batch, list[int]], list[Outcome]]
"""Scores a part of the batch; the second argument gives its places in the whole batch."""


class CallResult(NamedTuple):
    """Outcome of the calls of one function on N samples.

    Attributes:
        rewards: N rewards; `None` also for samples that failed.
        log: logs of the successful calls.
        failures: last exception for each sample that failed.
    """

    rewards: list[Reward]
    log: CallLog
    failures: dict[int, BaseException]


class _Progress:
    """Reports the number of newly scored samples, at most `count` in all, although retries score samples again."""

    def __init__(self, on_progress: Callable[[int], None], count: int):
        self.on_progress, self.left, self.lock = on_progress, count, threading.Lock()

    def __call__(self, newly: int) -> None:
        with self.lock:
            newly = min(newly, self.left)
            self.left -= newly
        if newly > 0:
            self.on_progress(newly)


class _Scoring:
    """Calls of one function on N samples, and their results so far.

    An exception raised in a call on several samples leaves open which sample caused it: from then on each sample is
    scored alone. Samples for which the function returned exceptions are scored again together.
    """

    def __init__(self, fn: Any, call: Call, batch: Batch, progress: Callable[[int], None]):
        self.fn, self.call, self.batch, self.progress = fn, call, batch, progress
        self.result = CallResult([None] * len(batch), CallLog(), {})
        self.pending = list(range(len(batch)))
        self.alone = False
        self._lock = threading.Lock()

    def run(self, retries: int, backoff: float, allowed_failures: float, stop: threading.Event) -> CallResult:
        """Score the samples; retry those that failed `retries` times, and once more alone if never tried alone."""
        tries = 0
        while not stop.is_set():
            alone = self.alone or len(self.pending) == 1
            self._try(alone, allowed_failures)
            if not self.pending or (tries >= retries and alone >= self.alone):
                break
            stop.wait(min(backoff * 2.0 ** min(tries, 60), MAX_BACKOFF_SECONDS))
            tries += 1
        self.progress(len(self.batch))
        return self.result

    def _try(self, alone: bool, allowed_failures: float) -> None:
        self.result.failures.clear()
        groups = [[i] for i in self.pending] if alone else [self.pending]
        # Too many failures end the run, so the rest is not tried; state cannot be restored while other calls change it.
        if alone and is_async(self.fn) and not is_stateful(self.fn):
            slots = threading.Semaphore(_ASYNC_SAMPLES)  # samples wait for a service at the same time

            def score(group: list[int]) -> None:
                with slots:
                    if len(self.result.failures) <= allowed_failures:
                        self._score(group)

            for wait in [start(partial(score, group)) for group in groups]:
                wait(None)
        else:
            for group in groups:
                if len(self.result.failures) <= allowed_failures or not alone:
                    self._score(group)

    def _score(self, indices: list[int]) -> None:
        count = len(self.batch)
        log = CallLog(len(indices))
        on_progress = self.progress if len(indices) == count else (lambda n: None)
        services = {"log_extra": log.log_extra, "log_metric": log.log_metric, "on_progress": on_progress}
        part = self.batch if len(indices) == count else self.batch.select(indices)
        part = replace(part, services={**part.services, **services})
        # The function may have updated its state before it raised: the retry must not count those samples twice.
        state = copy.deepcopy(self.fn.state_dict()) if is_stateful(self.fn) else None
        outcomes, error = attempt(lambda: self.call(part, indices))
        if error is not None and state is not None:
            self.fn.load_state_dict(state)
        log.check(reward_name(self.fn), len(indices))
        with self._lock:
            for i, outcome in zip(indices, [error] * len(indices) if outcomes is None else outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    self.result.failures[i] = outcome
                else:
                    self.result.rewards[i] = outcome
            done = {i for i in indices if i not in self.result.failures}
            self.pending = [i for i in self.pending if i not in done]
            if error is None:
                self.result.log.add(log, at=indices, of=count)
            else:
                self.alone = True
                told = (reward_name(self.fn), len(indices), error_text(error))
                logger.info("Reward function '%s' raised on %d samples: %s", *told)


def run_rewards(
    fns: Sequence[Any],
    batch: Batch,
    *,
    retries: int,
    timeout: float | None,
    allowed_failures: float,
    on_progress: Callable[[int], None],
    backoff: float | None = None,
    untimed: Collection[int] = (),
) -> list[CallResult]:
    """Call several functions on N samples, and again for samples that failed; async functions run during the others.

    The members of a combination are called by themselves, so that a failure of one repeats no call of another. The
    combination then combines (and learns from) the samples that all members scored, once.

    Args:
        fns: reward functions.
        batch: N samples.
        retries: number of retries for a sample that failed.
        timeout: seconds per call, also of one that a combination makes in `combine`, or `None`. Adapters on a shared
            base are never timed: a call that goes on in the background would leave its adapter switched on for the
            other roles.
        allowed_failures: number of failed samples above which the remaining samples are not tried.
        on_progress: called with the number of samples newly scored, N for each function.
        backoff: seconds before the first retry, doubled before each further one; at most a minute. By default
            `BACKOFF_SECONDS`.
        untimed: `id`s of further functions, or members, that are not timed.

    Raises:
        ValueError, TypeError: a function broke its contract; that is never retried.
    """
    stop = threading.Event()
    wait_first = BACKOFF_SECONDS if backoff is None else backoff

    def report(newly: int) -> None:
        if not stop.is_set():
            on_progress(newly)

    def run(fn: Any, call: Call, part: Batch, progress: Callable[[int], None]) -> CallResult:
        return _Scoring(fn, call, part, progress).run(retries, wait_first, allowed_failures, stop)

    def limit_of(fn: Any) -> float | None:
        return None if any(shares_base(one) or id(one) in untimed for one in members_of(fn)) else timeout

    def run_member(fn: Any, progress: Callable[[int], None]) -> CallResult:
        return run(fn, lambda part, indices: call_reward(fn, part, limit_of(fn)), batch, progress)

    def combine(fn: Any, call: Call, part: Batch) -> CallResult:
        # The members that `combine` calls on further texts have the same limit.
        return run(fn, call, replace(part, timeout=limit_of(fn)), lambda n: None)

    jobs: list[list[Callable[[], CallResult]]] = []
    for fn in fns:
        progress = _Progress(report, len(batch))
        jobs.append([partial(run_member, member, progress) for member in members_of(fn)])
    places = [(i, k, is_async(member)) for i, fn in enumerate(fns) for k, member in enumerate(members_of(fn))]
    try:
        waits = {(i, k): start(jobs[i][k]) for i, k, concurrent in places if concurrent}
        # Synchronous functions run in this thread, which has the right device and receives interrupts.
        done = {(i, k): jobs[i][k]() for i, k, concurrent in places if not concurrent}
        done |= {place: wait(None) for place, wait in waits.items()}
        return [_all_in_one(fn, [done[i, k] for k in range(len(jobs[i]))], batch, combine) for i, fn in enumerate(fns)]
    finally:
        stop.set()  # for calls that go on in the background, after Ctrl-C or a timeout


def run_reward(fn: Any, batch: Batch, **options: Any) -> CallResult:
    """Run [`run_rewards`] for one function."""
    return run_rewards([fn], batch, **options)[0]


def members_of(fn: Any) -> Iterator[Any]:
    """Yield the functions that are called for `fn`: itself, or the members of a combination, at every depth."""
    # A combination with a `__call__` of its own is called as a whole.
    if isinstance(fn, Combination) and type(fn).__call__ is Combination.__call__:
        for member in fn.members:
            yield from members_of(member)
    else:
        yield fn


Combine = Callable[[Any, Call, Batch], CallResult]


def _all_in_one(fn: Any, results: list[CallResult], batch: Batch, run: Combine) -> CallResult:
    """Return the result of a function from those of its `members_of`; a sample that one failed on fails for all."""
    failures = {i: error for result in results for i, error in result.failures.items()}
    return _combined(fn, iter([result._replace(failures=dict(failures)) for result in results]), batch, run)


def _combined(fn: Any, results: Iterator[CallResult], batch: Batch, run: Combine) -> CallResult:
    if next(members_of(fn)) is fn:
        return next(results)
    members, count = [_combined(member, results, batch, run) for member in fn.members], len(batch)
    whole = CallResult([None] * count, CallLog(), {})
    for member in members:
        whole.failures.update(member.failures)
        whole.log.add(member.log, at=list(range(count)), of=count)
    rows = [i for i in range(count) if i not in whole.failures]
    if not rows:
        return whole

    def call(part: Batch, places: list[int]) -> list[Outcome]:
        rewards = [[member.rewards[rows[place]] for place in places] for member in members]
        return read_rewards(reward_name(fn), fn.combine(rewards, part), len(part), part.completion_ids)

    own = run(fn, call, batch if len(rows) == count else batch.select(rows))
    for place, i in enumerate(rows):
        whole.rewards[i] = own.rewards[place]
    whole.failures.update({rows[place]: error for place, error in own.failures.items()})
    whole.log.add(own.log, at=rows, of=count)
    return whole
