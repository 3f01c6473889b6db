# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Weights of which a process may hold but a part: gathered for a block, written, saved and loaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from trl_ext.processes import gather, together

from .zero import engine_of
from .zero3 import cut, gathering, is_partitioned, own_part, release

__all__ = ["gathered_state", "is_sharded", "like", "load_state", "local", "part_of", "resharded", "whole", "written"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def is_sharded(module: nn.Module) -> bool:
    """Return whether a process holds but a part of some parameters of a module."""
    return any(isinstance(p, DTensor) or is_partitioned(p) for p in module.parameters())


@contextmanager
def whole(model: nn.Module, *, fsdp: bool = True) -> Iterator[None]:
    """Gather all parameters of the sharded root module for the length of a block; a collective at its beginning.

    With `fsdp=False` FSDP gathers none, and ZeRO-3 all.

    In the block every process may run as many forward passes as it likes, of any part of the model: completions have
    different lengths in different processes, which would otherwise wait for each other's shards. A gathered model takes
    the memory of all its parameters in the dtype of the forward pass.
    """
    if not isinstance(model, FSDPModule):
        engine = engine_of(model)
        with nullcontext() if engine is None else engine.gathered():
            yield
        return
    if not fsdp:
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
    release(model)
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
    if is_partitioned(tensor):
        return own_part(tensor)
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor, the same in every process, sharded as another one of its shape is.

    What was sharded before is returned as it is.
    """
    if is_partitioned(other):
        return cut(tensor, other) if tensor.shape == other.ds_shape else tensor  # type: ignore[attr-defined]
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole state dict of a model, on the CPU of the main process where it is sharded; a collective."""
    if not is_sharded(resharded(model)):
        return model.state_dict()
    if any(map(is_partitioned, model.parameters())):
        return _gathered_one_by_one(model)
    state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return state


def _gathered_one_by_one(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        with gathering([value]):
            if torch.distributed.get_rank() == 0:
                state[name] = value.detach().to("cpu", copy=True)
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
    partitioned = any(map(is_partitioned, module.parameters()))
    with together("Reading weights"):
        state: Any = read() if torch.distributed.get_rank() == 0 else {}
        if partitioned:
            _check_keys(module, state, strict)
    if partitioned:
        _load_one_by_one(module, state)
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
    set_model_state_dict(module, state, options=options)


def _check_keys(module: nn.Module, state: dict[str, Tensor], strict: bool) -> None:
    """Refuse the main process's state dict as torch's `load_state_dict` would."""
    if not state:
        return
    own = module.state_dict(keep_vars=True)
    shapes = {name: getattr(value, "ds_shape", value.shape) for name, value in own.items()}
    faults = [f"unexpected key {name}" for name in state if name not in own]
    faults += [f"missing key {name}" for name in own if strict and name not in state]
    faults += [
        f"size mismatch for {name}: {tuple(value.shape)} instead of {tuple(shapes[name])}"
        for name, value in state.items()
        if name in own and value.shape != shapes[name]
    ]
    if faults:
        raise RuntimeError(f"Error(s) in loading state_dict for {type(module).__name__}:\n{faults[0]}")


@torch.no_grad()
def _load_one_by_one(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Give every process its part of each tensor of the main process's state dict."""
    names = gather(sorted(state))[0]
    own = module.state_dict(keep_vars=True)
    for name in names:
        value = own[name]
        shape = getattr(value, "ds_shape", value.shape)
        whole = torch.empty(shape, dtype=value.dtype, device=local(value).device)
        if state:
            whole.copy_(state[name])
        torch.distributed.broadcast(whole, 0)
        local(value).copy_(like(whole, value))
