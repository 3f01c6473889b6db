# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What users give as rewards: functions, models and names of models, made into functions with names."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.nn import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.messages.printable import brief

from .base import iter_parts, reward_name
from .preference import PreferenceReward
from .scoring import SequenceScorer

RewardSource: TypeAlias = str | PreTrainedModel | Callable


def reward_names(reward_funcs: Any) -> list[str]:
    """Return the names in logs of reward functions and models, which `RewardRunner` also gives them; loads nothing."""
    given = [] if reward_funcs is None else reward_funcs
    sources = list(given) if isinstance(given, list | tuple) else [given]
    return unique_names([reward_name(as_function(source, None, None, None)) for source in sources])


def check_reward_models(reward_funcs: Any, processing_classes: Any = None) -> None:
    """Check that the models named in reward functions exist and are reward models, before any is loaded.

    Raises:
        ValueError: no such model or tokenizer, wrong labels, or the tokenizer of another model.
    """
    given = [] if reward_funcs is None else reward_funcs
    sources = list(given) if isinstance(given, list | tuple) else [given]
    for source, tokenizer in zip(sources, one_each(processing_classes, len(sources)), strict=True):
        if isinstance(source, str | os.PathLike):
            PreferenceReward(source, tokenizer=tokenizer).scorer.check()
    for scorer in scorers(sources):
        scorer.check()


def scorers(functions: Sequence[Any]) -> Iterator[SequenceScorer]:
    """Yield the scorers of reward functions and of the functions that they combine."""
    for part in (part for fn in functions for part in iter_parts(fn)):
        scorer = getattr(part, "scorer", None)
        if isinstance(scorer, SequenceScorer):
            yield scorer


def unique_names(names: list[str]) -> list[str]:
    """Return names of which none occurs twice: `_2`, `_3`, ... is appended to those that did."""
    unique: list[str] = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
        unique.append(next(candidate for candidate in candidates if candidate not in unique))
    return unique


def one_each(processing_classes: Any, count: int) -> list[PreTrainedTokenizerBase | None]:
    """Return a tokenizer, or None, for each of `count` reward functions.

    Raises:
        ValueError: another number of them was given.
    """
    if not isinstance(processing_classes, list | tuple):
        return [processing_classes] * count
    if len(processing_classes) != count:
        raise ValueError(
            f"Got {len(processing_classes)} reward processing classes for {count} reward functions: give one each, "
            f"None for functions."
        )
    return list(processing_classes)


def as_function(
    source: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    chat_template_kwargs: dict[str, Any] | None,
    device: str | torch.device | None,
) -> Callable:
    """Return a reward function: the one that was given, or that of a model or of a model's name, which is not loaded.

    Raises:
        TypeError: it is none of them.
    """
    # a compiled model is a Module with a config, but no PreTrainedModel
    if isinstance(source, str | os.PathLike | PreTrainedModel) or (
        isinstance(source, Module) and hasattr(source, "config")
    ):
        reward = PreferenceReward(
            source,  # type: ignore[arg-type]
            tokenizer=tokenizer,
            chat_template_kwargs=chat_template_kwargs,
            device=device,
        )
        return reward
    if not callable(source):
        raise TypeError(
            f"reward_funcs has {brief(source)} ({type(source).__name__}): give a function, a model or its name."
        )
    return source
