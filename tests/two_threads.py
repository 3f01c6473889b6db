# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Two processes as two threads: each has data of its own, so that a sum which leaves the other out shows."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def on_two(function: Callable[[int, Callable[..., Tensor]], Any]) -> list[Any]:
    """Return the results of `function(number, reduce)` for process number 0 and 1, where `reduce` is over both."""
    barrier, given = threading.Barrier(2, timeout=60), [torch.zeros(())] * 2

    def process(number: int) -> Any:
        def reduce(tensor: Tensor, operation: str = "sum") -> Tensor:
            given[number] = tensor
            barrier.wait()
            result = torch.maximum(*given) if operation == "max" else given[0] + given[1]
            barrier.wait()
            return result

        try:
            return function(number, reduce)
        except BaseException:
            barrier.abort()  # the other does not wait for this one
            raise

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(process, range(2)))
