# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Sends SIGINT to processes that wait for a reward; prints how each ended. Started by `test_failures.py`.

Children are forked after the imports and before any thread is started, which spares each one the imports.
"""

import asyncio
import json
import os
import signal
import sys
import time

from trl_ext.rewards import RewardRunner, WeightedSum

READ, WRITE = os.pipe()


def announce() -> None:
    """Tell the parent that the reward is under way."""
    os.write(WRITE, b".")


def slow(completions, **columns):
    """As a model or a service may be."""
    announce()
    time.sleep(60)


async def later(completions, **columns):
    """Waits, and lets others run."""
    announce()
    await asyncio.sleep(60)


async def deaf(completions, **columns):
    """Waits, and cannot be cancelled."""
    announce()
    time.sleep(60)


def fails(completions, **columns):
    """Is tried again after a while."""
    announce()
    raise RuntimeError("no luck")


KINDS = {
    "sync": (slow, {}),
    "timed": (slow, {"timeout": 50}),
    "async": (later, {}),
    "async, timed": (later, {"timeout": 50}),
    "async, deaf": (deaf, {}),
    "member": (WeightedSum([later]), {}),
    "backoff": (fails, {"backoff": 50}),
}


def score(kind: str) -> None:
    """Ends as Python ends a script."""
    reward, options = KINDS[kind]
    try:
        RewardRunner(reward, **options)(["p"] * 2, ["a", "b"], [[1]] * 2, {})
    except KeyboardInterrupt:
        sys.exit("interrupted")
    sys.exit("not interrupted")


def end_of(kind: str) -> tuple[int, float]:
    """Exit status of the child and the seconds that it took to end after the signal."""
    pid = os.fork()
    if pid == 0:
        score(kind)
    os.read(READ, 1)
    time.sleep(0.1)
    start = time.monotonic()
    os.kill(pid, signal.SIGINT)
    while time.monotonic() - start < 20:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), time.monotonic() - start
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 20.0


if __name__ == "__main__":
    print(json.dumps({kind: end_of(kind) for kind in KINDS}))
