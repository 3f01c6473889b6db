# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Detection of reward functions that run weights of the policy."""

import functools
import inspect
from collections.abc import Iterator, Set
from types import CellType
from typing import Any

from torch.nn import Module

_DEPTH, _MOST = 4, 2000  # references between a function and its model, and objects that are looked through, at most


def shares_base(fn: Any) -> bool:
    """Return whether a function runs an adapter on a base that other roles also run, as `AdapterRewardModel` does."""
    return any(getattr(module, "shares_base", False) for module in _modules(fn))


def reads_any(fn: Any, parameters: Set[int]) -> bool:
    """Return whether a function runs a model that has one of these parameters, given by `id`."""
    return bool(parameters) and any(id(p) in parameters for module in _modules(fn) for p in module.parameters())


def _modules(fn: Any) -> Iterator[Module]:
    """Yield the models that a function holds: in its attributes, its closure, its arguments or by name."""
    seen: set[int] = set()
    reached = [(fn, 0)]
    while reached and len(seen) < _MOST:
        value, depth = reached.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Module):
            yield value
        elif depth < _DEPTH:
            reached += [(inner, depth + 1) for inner in _held_by(value)]


def _held_by(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, list | tuple):
        return list(value[:100])
    if isinstance(value, dict):
        return list(value.values())[:100]
    if inspect.ismethod(value):
        return [value.__self__, value.__func__]
    if inspect.isfunction(value):
        names = {*value.__code__.co_names} & value.__globals__.keys()
        held = [value.__globals__[name] for name in names] + [*(value.__defaults__ or ()), *vars(value).values()]
        held += (value.__kwdefaults__ or {}).values()
        return held + [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
    if inspect.ismodule(value) or inspect.isclass(value) or not hasattr(value, "__dict__"):
        return []
    return list(vars(value).values())
