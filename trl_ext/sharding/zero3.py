# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Parameters that DeepSpeed's ZeRO-3 has partitioned: a process holds a flat part of each, and gathers it for use."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["cut", "gathering", "is_partitioned", "own_part", "release", "without_hooks"]


def is_partitioned(tensor: Tensor) -> bool:
    """Return whether a tensor is a parameter that ZeRO-3 has partitioned."""
    return getattr(tensor, "ds_tensor", None) is not None


def _own_range(parameter: Any) -> tuple[int, int]:
    """Return the first of this process's elements in a flattened parameter, and their number.

    The parts are of equal size, so that the last ones may end with padding, or be padding alone.
    """
    size: int = parameter.ds_tensor.ds_numel
    start = min(size * parameter.ds_zero_partition_rank, parameter.ds_numel)
    return start, min(size, parameter.ds_numel - start)


def own_part(parameter: Any) -> Tensor:
    """Return this process's part of a partitioned parameter without padding, flat; it shares memory."""
    part: Tensor = parameter.ds_tensor
    return part.narrow(0, 0, _own_range(parameter)[1])


def cut(whole: Tensor, parameter: Any) -> Tensor:
    """Return a copy of this process's part of a whole tensor, as `own_part` gives it of a parameter of its shape."""
    return whole.reshape(-1).narrow(0, *_own_range(parameter)).clone()


def gathering(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
    """Make parameters whole for the length of a block, which must not change them; a collective."""
    from deepspeed.runtime.zero import GatheredParameters

    gathered: AbstractContextManager[None] = GatheredParameters(list(parameters))
    return gathered


def release(module: nn.Module) -> None:
    """Leave this process nothing but its parts of a module's parameters."""
    for parameter in module.parameters():
        if is_partitioned(parameter):
            parameter.partition()  # type: ignore[attr-defined]  # does nothing where it is not gathered


@contextmanager
def without_hooks(offload: Any) -> Iterator[None]:
    """Take away the hooks that gather parameters module by module, for a block in which all are gathered.

    The hooks would release them, and compare the order of modules over processes, which may run different passes.

    Args:
        offload: DeepSpeed's `DeepSpeedZeRoOffload` of the model.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    offload.destroy()
    offload.forward_hooks.clear()
    offload.backward_hooks.clear()
    try:
        yield
    finally:
        offload.setup_zero_stage3_hooks()
        FWD_MODULE_STACK.pop()  # it has the model already
