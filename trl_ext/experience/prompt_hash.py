# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A number for each prompt, the same in every process, run and epoch, by which prompts are divided."""

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

from .rollout import Rollout


def prompt_hash(prompt_ids: Iterable[int]) -> int:
    """Return the CRC-32 of a prompt's token ids, from 0 to 2**32 - 1.

    Two divisions of the same prompts are independent of each other when they read different bits: one by
    `hash % 2`, say, and another by `hash // 2 % 10`.
    """
    return zlib.crc32(" ".join(map(str, prompt_ids)).encode())


def held_out_prompts(rollout: Rollout, share: float) -> Tensor:
    """Return the samples whose prompts are among the `share` that the critic never learns from; bool, shape (N,).

    The choice follows from the prompt alone. It does not read the lowest bit of the hash, which divides two critics.
    """
    return prompt_hashes(rollout) // 2 < share * 2**31


def prompt_hashes(rollout: Rollout) -> Tensor:
    """Return [`prompt_hash`] of every sample's prompt, without padding; int64, shape (N,), on the rollout's device."""
    width = rollout.input_ids.shape[1] - rollout.completion_length
    rows = zip(rollout.input_ids[:, :width].tolist(), rollout.attention_mask[:, :width].tolist(), strict=True)
    hashes = [prompt_hash(token for token, real in zip(ids, mask, strict=True) if real) for ids, mask in rows]
    return torch.tensor(hashes, dtype=torch.int64, device=rollout.input_ids.device)
