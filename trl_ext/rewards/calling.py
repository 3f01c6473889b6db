# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Calls of reward functions, in this thread, in another or on the event loop, with their failures as results."""

import asyncio
import contextlib
import functools
import inspect
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch

from .base import (
    Batch,
    ContractViolation,
    Outcome,
    Reward,
    accepted_arguments,
    fresh,
    is_async,
    read_rewards,
    reward_name,
)

T = TypeVar("T")

_LOOK = 0.2  # seconds between two looks at an event that ends a wait


class RaisedInterrupt(Exception):
    """A KeyboardInterrupt raised where Ctrl-C does not arrive: in a thread of its own, or on the event loop."""


def _not_pressed(error: BaseException) -> BaseException:
    return RaisedInterrupt("KeyboardInterrupt") if isinstance(error, KeyboardInterrupt) else error


# Threads and the event loop


def _thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Return a daemon thread with the CUDA device of this one; that of a new thread is device 0, another process's."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def run() -> None:
        if device is not None:
            torch.cuda.set_device(device)
        target()

    return threading.Thread(target=run, daemon=True, name=name)


def start(call: Callable[[], T]) -> Callable[..., T]:
    """Start `call` in a thread of its own.

    The thread is a daemon and in no pool: a call that never returns must not keep the process alive.

    Returns:
        A function `wait(timeout, stopped=None)`, which returns the result of `call` or raises its exception. After
        `timeout` seconds without a result it raises `TimeoutError`, and the call goes on in the background; None waits
        for ever. Once the event `stopped` is set, `wait` with a timeout raises `InterruptedError`.
    """
    outcome: dict[str, Any] = {}

    def target() -> None:
        try:
            outcome["result"] = call()
        except BaseException as error:
            outcome["error"] = _not_pressed(error)

    thread = _thread(target, "trl_ext-reward-call")
    thread.start()

    def wait(timeout: float | None, stopped: threading.Event | None = None) -> T:
        if timeout is None or stopped is None:
            thread.join(timeout)
        else:
            end = time.monotonic() + timeout
            while thread.is_alive() and time.monotonic() < end and not stopped.is_set():
                thread.join(_LOOK)
        if thread.is_alive() and stopped is not None and stopped.is_set():
            raise InterruptedError("the wait was stopped")
        if thread.is_alive():
            raise TimeoutError(f"timeout: no result within {timeout:g} s")
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    return wait


async def in_thread(call: Callable[[], T]) -> T:
    """Return the result of `call`, or raise its exception, from a thread that does not keep the process alive.

    `asyncio.to_thread` would: the process waits for its threads at the end, also after Ctrl-C.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(method: Callable[[Any], None], value: Any) -> None:
        if not future.done():  # it is after a timeout
            method(value)

    def target() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = future.set_result, call()
        except BaseException as error:
            outcome = future.set_exception, _not_pressed(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, *outcome)

    _thread(target, "trl_ext-reward-call").start()
    return await future


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    # One loop for the life of the process: async clients stay bound to the loop of their first request.
    loop = asyncio.new_event_loop()

    def serve() -> None:
        # A task that raises SystemExit or KeyboardInterrupt ends `run_forever`, and with it all other tasks.
        while not loop.is_closed():
            try:
                loop.run_forever()
            except BaseException:
                continue

    _thread(serve, "trl_ext-rewards").start()
    return loop


async def _guarded(awaitable: Awaitable[T]) -> tuple[T | None, BaseException | None]:
    """Return the result or the exception of an awaitable; a SystemExit raised in a task would end the whole loop."""
    try:
        return await awaitable, None
    except BaseException as error:
        return None, _not_pressed(error)


def run_awaitable(awaitable: Awaitable[T], timeout: float | None = None) -> T:
    """Return the result of an awaitable to synchronous code, also inside a running event loop.

    Raises:
        TimeoutError: no result within `timeout` seconds; the awaitable is cancelled.
    """
    try:
        inside = asyncio.get_running_loop() is _event_loop()
    except RuntimeError:
        inside = False
    if inside:  # waiting for this loop from this loop would never end
        result, error = start(lambda: asyncio.run(_guarded(awaitable)))(timeout)
    else:
        future = asyncio.run_coroutine_threadsafe(_guarded(awaitable), _event_loop())
        try:
            result, error = future.result(timeout)
        except BaseException as raised:  # no result in time, or Ctrl-C
            future.cancel()
            if isinstance(raised, TimeoutError):
                raise TimeoutError(f"timeout: no result within {timeout:g} s") from None
            raise
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


# Failures of the function, and interrupts of the run


@contextmanager
def _noting_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed in this block; only the main thread learns of it."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return
    pressed: list[int] = []

    def note(number: int, frame: Any) -> Any:
        try:
            return before(number, frame)  # type: ignore[operator]
        except KeyboardInterrupt:
            pressed.append(number)
            raise

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)


def attempt(call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Call a reward function, and return its exception as a result.

    Rewards run code that models wrote, and parsers that exit on such code: `SystemExit`, a cancelled task or a panic of
    an extension mean that a sample failed, not that training is to end.

    Returns:
        The result and None; or None and the exception.

    Raises:
        ContractViolation: as raised by `call`; the same call would break the contract again.
        KeyboardInterrupt: Ctrl-C was pressed, even if the function has caught it.
        GeneratorExit, and pytest's outcomes: they are not failures of the function.
    """
    result: T | None = None
    failure: BaseException | None = None
    with _noting_interrupts() as interrupted:
        try:
            result = call()
        except BaseException as error:
            pressed = isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
            if pressed or isinstance(error, ContractViolation | GeneratorExit):
                raise
            if type(error).__module__.startswith("_pytest."):
                raise
            failure = error
        if interrupted():
            raise KeyboardInterrupt
    return result, failure


# Reward functions


def call_reward(fn: Callable, batch: Batch, timeout: float | None = None) -> list[Outcome]:
    """Call one reward function, async or not, with lists of its own, and check its result.

    Args:
        timeout: seconds that the call may take. A synchronous function then runs in a thread of its own, which goes on
            in the background when the time is over.

    Returns:
        N times a finite `float` or a list of one a token, `None`, or the exception that the function returned for
        this sample.

    Raises:
        TimeoutError: the call took longer than `timeout`.
        RewardValueError, RewardTypeError: `fn` broke its contract.
    """
    count = len(batch)

    def call() -> Any:
        result = fn(**fresh(accepted_arguments(fn, batch.arguments())))
        # a generator function runs only now
        return list(islice(result, count + 1)) if isinstance(result, Iterator) else result

    result = call() if timeout is None or is_async(fn) else start(call)(timeout)
    if inspect.isawaitable(result):
        result = run_awaitable(result, timeout)
    return read_rewards(reward_name(fn), result, count, batch.completion_ids)


def call_rewards(fns: Sequence[Callable], batch: Batch) -> list[list[Reward]]:
    """Call several reward functions on one batch: the async ones concurrently, and the others before in turn.

    `batch.timeout` limits each synchronous call, and all async ones together.

    Returns:
        N rewards for each function.

    Raises:
        TimeoutError: a call took longer than `batch.timeout`.
        Exception: the exception that a function raised, or returned in the place of a reward.
    """
    outcomes = [[] if is_async(fn) else call_reward(fn, batch, batch.timeout) for fn in fns]
    pending = [i for i, fn in enumerate(fns) if is_async(fn)]
    if pending:
        calls = [fns[i](**fresh(accepted_arguments(fns[i], batch.arguments()))) for i in pending]

        async def together() -> list:
            return await asyncio.gather(*map(_guarded, calls))

        for i, (result, error) in zip(pending, run_awaitable(together(), batch.timeout), strict=True):
            read = functools.partial(read_rewards, reward_name(fns[i]), result, len(batch), batch.completion_ids)
            outcomes[i] = [error] if error is not None else read()
    for outcome in (outcome for row in outcomes for outcome in row):
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes  # type: ignore[return-value]
