# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Calling one reward function and surviving its failures: again, then sample by sample."""

import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from .base import Batch, ContractViolation, Reward, Stateful, call_reward, is_async, reward_name
from .logged import CallLog

logger = logging.getLogger(__name__)

BACKOFF_SECONDS = 0.2  # before the first retry; doubled before each further one
_ASYNC_SAMPLES = 32  # how many are tried at once, when an async function is called sample by sample


class CallResult(NamedTuple):
    """What became of N samples.

    Attributes:
        rewards: N rewards, `None` for those that failed, too.
        log: what the function logged, of successful calls only.
        failures: the last exception for each sample that failed.
    """

    rewards: list[Reward]
    log: CallLog
    failures: dict[int, Exception]


class _Progress:
    """Passes on how many of a function's samples are scored, up to `count` in all, whatever is scored twice."""

    def __init__(self, on_progress: Callable[[int], None], count: int):
        self.on_progress, self.left = on_progress, count

    def __call__(self, newly: int) -> None:
        newly = min(newly, self.left)
        self.left -= newly
        if newly > 0:
            self.on_progress(newly)


def run_reward(
    fn: Callable,
    batch: Batch,
    *,
    retries: int,
    timeout: float | None,
    allowed_failures: float,
    on_progress: Callable[[int], None],
) -> CallResult:
    """Calls one function on N samples, again if it raises, and in the end each sample alone, to find the culprits.

    Args:
        fn: the reward function.
        batch: N samples.
        retries: how often to call again on all of them.
        timeout: seconds per call, or `None`.
        allowed_failures: with more failed samples than this, the others are not tried any more.
        on_progress: called with the number of samples newly scored, N in all.

    Raises:
        ValueError, TypeError: `fn` broke its contract; that is never retried.
    """
    progress = _Progress(on_progress, len(batch))
    for attempt in range(retries + 1):
        try:
            rewards, log = _call(fn, batch, timeout, progress)
            progress(len(batch))
            return CallResult(rewards, log, {})
        except ContractViolation:
            raise
        except Exception as error:
            logger.info("Reward function '%s' raised at attempt %d: %r", reward_name(fn), attempt + 1, error)
            last = error
            if attempt < retries:
                time.sleep(BACKOFF_SECONDS * 2**attempt)
    if len(batch) == 1:
        result = CallResult([None], CallLog(), {0: last})
    else:
        result = _run_each(fn, batch, timeout, allowed_failures)
    progress(len(batch))
    return result


def _call(
    fn: Callable, batch: Batch, timeout: float | None, on_progress: Callable[[int], None]
) -> tuple[list[Reward], CallLog]:
    log = CallLog(len(batch))
    services = {"log_extra": log.log_extra, "log_metric": log.log_metric, "on_progress": on_progress}
    # a combination may have updated one member before another raised: the retry must not count that twice
    state = copy.deepcopy(fn.state_dict()) if isinstance(fn, Stateful) else None
    try:
        return call_reward(fn, replace(batch, services={**batch.services, **services}), timeout), log
    except Exception:
        if isinstance(fn, Stateful) and state is not None:
            fn.load_state_dict(state)
        raise


def _run_each(fn: Callable, batch: Batch, timeout: float | None, allowed_failures: float) -> CallResult:
    rewards: list[Reward] = [None] * len(batch)
    log, failures = CallLog(), {}

    def run_one(i: int) -> tuple[list[Reward], CallLog] | Exception:
        try:
            return _call(fn, batch.select([i]), timeout, lambda n: None)
        except ContractViolation:
            raise
        except Exception as error:
            return error

    with ThreadPoolExecutor(_ASYNC_SAMPLES) as pool:
        # what waits for a service waits for all samples at once
        outcomes = (pool.map if is_async(fn) else map)(run_one, range(len(batch)))
        for i, outcome in enumerate(outcomes):
            if isinstance(outcome, Exception):
                failures[i] = outcome
                if len(failures) > allowed_failures:
                    pool.shutdown(cancel_futures=True)
                    break
            else:
                (rewards[i],) = outcome[0]
                log.add(outcome[1], at=[i], of=len(batch))
    return CallResult(rewards, log, failures)
