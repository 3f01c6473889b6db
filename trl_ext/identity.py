# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a run is made of, in short: a checkpoint is resumed by a run of the same model, data and rewards."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .actor_critic import ActorCritic
from .experience.stream import StreamRows
from .rewards import RewardRunner
from .rewards.base import iter_parts
from .rewards.scoring import SequenceScorer

__all__ = ["reward_settings", "run_identity"]

_ROWS = 10_000  # rows of a dataset that are compared, evenly spaced
_VALUES = 32  # values of a weight that are compared
_PROBE = "PPO, 2017: the policy's ratio -- 1.0 -- is clipped\n  (naïvely?) at 1 ± ε."
_SPEED_ONLY = ("batch_size", "device", "timeout", "max_concurrency", "synchronize_each_call", "name")


def run_identity(
    model: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset | StreamRows,
    ptx_dataset: Dataset | None,
    rewards: RewardRunner,
) -> dict[str, Any]:
    """Return the identity of a run: model, data and rewards by content, since files may move but not change.

    Returns:
        Strings and numbers by name, which are compared one by one.
    """
    own = {id(p) for p in model.parameters()}
    # Checkpoints hold no frozen weights: the base below adapters, the reference, reward adapters.
    frozen = [p for p in model.parameters() if not p.requires_grad]
    identity: dict[str, Any] = {
        "model": f"{type(model.causal_lm).__name__} {_weights_digest(frozen)}",
        "tokenizer": _tokenizer_digest(tokenizer),
        "train_dataset": _dataset_digest(train_dataset),
        "ptx_dataset": None if ptx_dataset is None else _dataset_digest(ptx_dataset),
        "reward functions": rewards.names,
        "reward_weights": [round(weight, 6) for weight in rewards.weights.tolist()],
    }
    for name, function in zip(rewards.names, rewards.reward_funcs, strict=True):
        models = [
            m for part in iter_parts(function) for m in _models(part) if not own & {id(p) for p in m.parameters()}
        ]
        if models:
            identity[f"model of reward '{name}'"] = " ".join(_weights_digest(m.parameters()) for m in models)
    return identity


def reward_settings(rewards: RewardRunner) -> dict[str, Any]:
    """Return numbers and texts that reward functions were made with, by function and attribute; texts as digests."""
    settings = {}
    for name, function in zip(rewards.names, rewards.reward_funcs, strict=True):
        for i, part in enumerate(iter_parts(function)):
            values = part.keywords if isinstance(part, functools.partial) else getattr(part, "__dict__", {})
            for key, value in values.items():
                if key.startswith("_") or key in _SPEED_ONLY:
                    continue
                if isinstance(value, str):
                    value = _digest(value)  # may be long, or secret
                if value is None or isinstance(value, str | bool | int | float):
                    settings[f"{name}{f'[{i}]' if i else ''}.{key}"] = value
    return settings


def _digest(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=repr).encode(), digest_size=6).hexdigest()


def _weights_digest(parameters: Iterable[Tensor]) -> str:
    """Return a digest of shapes and some values, the same in every precision that holds the values exactly."""
    found = hashlib.blake2b(digest_size=6)
    for parameter in parameters:
        flat = parameter.detach().reshape(-1)
        values = flat[:: max(1, len(flat) // _VALUES)][:_VALUES].to("cpu", torch.float32)
        found.update(repr(tuple(parameter.shape)).encode())
        found.update(values.numpy().tobytes())
    return found.hexdigest()


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return _digest(len(tokenizer), tokenizer.eos_token_id, tokenizer(_PROBE)["input_ids"], tokenizer.chat_template)


def _dataset_digest(dataset: Dataset | StreamRows) -> str:
    if isinstance(dataset, StreamRows):
        return dataset.identity
    plain = [name for name, feature in dataset.features.items() if not hasattr(feature, "decode_example")]
    rows = dataset.select_columns(sorted(plain)).with_format(None)
    step = max(1, -(-len(dataset) // _ROWS))
    found = hashlib.blake2b(digest_size=6)
    for batch in rows.select(range(0, len(dataset), step)).iter(1000):
        found.update(json.dumps(batch, sort_keys=True, default=repr).encode())
    return f"{len(dataset)} rows {found.hexdigest()}"


def _models(part: Any) -> Iterator[nn.Module]:
    for value in getattr(part, "__dict__", {}).values():
        if isinstance(value, SequenceScorer):
            yield value.model
        elif isinstance(value, nn.Module):
            yield value
