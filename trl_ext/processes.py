# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Processes of one run: they succeed or fail together, and sum over each other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

__all__ = ["ProcessFailureError", "Reduce", "gather", "leave", "own_rows", "reduction", "together"]

Reduce = Callable[..., Tensor]
"""`reduce(tensor, operation="sum")`: the sum or, with "max", the largest value over processes."""


def reduction(accelerator: Accelerator) -> Reduce:
    """Return the function that reduces a tensor over the processes of a run; a collective where there are several."""

    def reduce(tensor: Tensor, operation: str = "sum") -> Tensor:
        if accelerator.num_processes == 1:
            return tensor
        if operation == "max":
            return accelerator.gather(tensor).max()
        return accelerator.reduce(tensor, reduction=operation)

    return reduce


def own_rows(accelerator: Accelerator, count: int) -> int:
    """Return how many of the `count` rows in the newest batch of accelerate's data loader are this process's own.

    The own rows are the first ones. With several processes accelerate fills the last batch of each process with rows
    from the beginning of the dataset, which an evaluation would count twice.
    """
    state = accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return count
    return min(max(state.remainder - accelerator.process_index * count, 0), count)


class ProcessFailureError(RuntimeError):
    """Another process of the run failed."""


@contextmanager
def together(what: str) -> Iterator[None]:
    """Run a block on every process, and fail on all of them if it fails on one.

    Without it, the processes that succeed wait for the one that failed at their next collective, until a timeout. The
    end of the block is a barrier. Every process must enter the block, and the block must hold no collective that
    could come after a failure. In a run of one process nothing is added.

    Args:
        what: Names the block in the message, such as "scoring".

    Raises:
        ProcessFailureError: on the processes whose own block succeeded; the others raise their own exception.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    try:
        failed = _exchange(failure)
    except Exception:
        if failure is None:
            raise
        failed = []  # the others are gone; the failure of this process is the one to be shown
    if failure is not None:
        raise failure
    if failed:
        raise ProcessFailureError(f"{what} failed on {'; '.join(failed)}; the other processes stop with it.")


def _exchange(failure: Exception | None) -> list[str]:
    """Return the failures of all processes, in words. A collective if torch.distributed runs."""
    text = None if failure is None else " ".join(f"{type(failure).__name__}: {failure}".split())
    return [f"process {rank} ({text})" for rank, text in enumerate(gather(text)) if text is not None]


def gather(value: Any) -> list[Any]:
    """Return the value of every process, in the order of ranks. A collective if torch.distributed runs.

    Accelerate's `gather_object` asks `PartialState`, which may be older than the process group that a user made.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, value)
    return parts


def leave() -> None:
    """Leave the other processes, at the end of a program that all of them reach; torch warns where that is left out.

    The group of a single process stays: vLLM makes one, and takes it apart itself.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
