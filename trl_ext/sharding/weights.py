# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Weights of which a process may hold but a part: gathered for a block, written, saved and loaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from trl_ext.processes import together

from .zero import engine_of

__all__ = ["gathered_state", "is_sharded", "like", "load_state", "local", "part_of", "resharded", "whole", "written"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def is_sharded(module: nn.Module) -> bool:
    """Return whether a process holds but a part of some parameters of a module."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Gather all parameters of the sharded root module for the length of a block; a collective at its beginning.

    In the block every process may run as many forward passes as it likes, of any part of the model: completions have
    different lengths in different processes, which would otherwise wait for each other's shards. A gathered model takes
    the memory of all its parameters in the dtype of the forward pass.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    _make_root(model)
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        if part is not model:  # the root's own parameters stay gathered after a forward pass anyway
            part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            if part is not model:
                keeps = AcceleratorState().fsdp_plugin.reshard_after_forward
                part.set_reshard_after_forward(bool(keeps), recurse=False)
            part.reshard()


def _make_root(model: nn.Module) -> None:
    """Have FSDP take `model` for the root: it takes the module that is the first to run a forward pass."""
    model.begin = lambda: None  # type: ignore[assignment]
    register_fsdp_forward_method(model, "begin")
    model.begin()  # type: ignore[operator]
    del model.begin


def resharded(model: ModuleT) -> ModuleT:
    """Return the model with nothing gathered but this process's shards, which its parameters are then."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return model


@contextmanager
def written(model: nn.Module) -> Iterator[None]:
    """Let a block change weights of the root module in place, where an optimizer has copies of them too."""
    resharded(model)
    yield
    if (engine := engine_of(model)) is not None:
        engine.refresh()


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor, the same in every process, sharded as another one of its shape is."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole state dict of a model, on the CPU of the main process where it is sharded; a collective."""
    if not is_sharded(resharded(model)):
        return model.state_dict()
    state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return state


def part_of(state: dict[str, Tensor] | None, name: str, module: nn.Module | None) -> dict[str, Tensor] | None:
    """Return the state dict of the submodule `name` in a gathered one; None without one or without the module.

    Weights that are tied in the module are one tensor here too, though they were gathered one by one: transformers then
    writes them once.
    """
    if state is None or module is None:
        return None
    part = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    first: dict[int, str] = {}
    for key, value in module.state_dict(keep_vars=True).items():
        part[key] = part[first.setdefault(id(value), key)]
    return part


def load_state(module: nn.Module, read: Callable[[], dict[str, Tensor]], *, strict: bool = True) -> None:
    """Load a state dict into a module; a collective where it is sharded.

    Args:
        module: The module.
        read: Reads the state dict; where the module is sharded, only the main process does.
        strict: Whether every key must be there; keys that the module lacks are refused in any case.

    Raises:
        ProcessFailureError: on the other processes, when `read` fails on the main one.
    """
    if not is_sharded(resharded(module)):
        module.load_state_dict(read(), strict=strict)
        return
    with together("Reading weights"):
        state: Any = read() if torch.distributed.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
    set_model_state_dict(module, state, options=options)
