# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The `repr` of reward functions."""

import inspect
import math
import re
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

_LONGEST = 60


def constructor_repr(reward: Any) -> str:
    """Return the call that makes such a reward, `Class(model, option=value)`, without options at their default."""
    parts = []
    for name, parameter in inspect.signature(type(reward)).parameters.items():
        value = _value(reward, name, parameter.default)
        if parameter.default is inspect.Parameter.empty or name == "model":
            parts.append(_short(value))
        elif value is not parameter.default and value != parameter.default:
            parts.append(f"{name}={_short(value)}")
    return f"{type(reward).__name__}({', '.join(parts)})"


def _value(reward: Any, name: str, default: Any) -> Any:
    """Return the present value of a parameter of the constructor."""
    scorer = getattr(reward, "scorer", None)
    if name == "name":  # without a default it follows from the other parameters
        return default if default is None else reward.__name__
    if name == "reward":
        return reward.members[0]
    if scorer is not None and name in ("model", "tokenizer"):
        return getattr(scorer, f"given_{name}")
    value = getattr(reward, name, getattr(scorer, name, default))
    if isinstance(value, frozenset):
        value = tuple(sorted(value))
    nothing = value == {} or (isinstance(value, float) and math.isinf(value))
    return None if default is None and nothing else value


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_short, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, re.Pattern):
        return repr(value.pattern)
    if isinstance(value, torch.nn.Module | PreTrainedTokenizerBase):
        path = getattr(value, "name_or_path", "")
        return f"{type(value).__name__}({path!r})" if path else type(value).__name__
    if inspect.isroutine(value):
        return value.__name__
    text = repr(value)
    # Rewards inside rewards are shown in full: each of them is short.
    return text if hasattr(value, "__name__") or len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
