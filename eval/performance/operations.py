# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Arithmetic of an update in TRL's last PPOTrainer and in ours, and the machine's highest rate."""

import time
from typing import NamedTuple

import torch


class Sizes(NamedTuple):
    """Sizes that the count depends on.

    Attributes:
        trunk: Weights of a model's linear layers but the head.
        head: Weights of the head, vocabulary times hidden size.
        prompt, completion: Tokens of a sequence.
        epochs: Passes of learning.
        recompute: The logits of a micro-batch are too many to be kept: where the head is trained they are computed
            twice.
    """

    trunk: int
    head: int
    prompt: int
    completion: int
    epochs: int
    recompute: bool


def operations(trainer: str, *, lora: bool, critic: str, sizes: Sizes) -> dict[str, int]:
    """Count multiplications and additions for one sequence in one update, without attention and elementwise work.

    A product with a weight takes 2 operations a token and weight, its backward pass 2 for the input, and 2 more for the
    weight where that is trained. Both sample from the policy, score with a reward model, and evaluate the reference.
    TRL has the policy's log-probabilities from sampling, we take them from the training path. TRL computes logits of
    the prompt too, and its critic is always a whole model, trained in full.

    Args:
        trainer: "trl" or "ours".
        lora: Whether the policy has adapters, whose own weights are too few to count, on a frozen base.
        critic: Ours: "copy", "adapter" or "head".
        sizes: Of the models and texts.

    Returns:
        Operations by phase: "generate", "score", "evaluate" and "learn".
    """
    tokens = sizes.prompt + sizes.completion
    trunk = sizes.trunk * tokens
    sampling, scoring = 2 * trunk + 2 * sizes.head * sizes.completion, 2 * trunk
    train = 4 if lora else 6
    if trainer == "trl":
        head = sizes.head * tokens
        evaluating = 2 * (trunk + head) + 2 * trunk  # reference, critic
        learning = train * (trunk + head) + 6 * trunk
    else:
        head = sizes.head * sizes.completion
        critics = {"copy": (2, 6), "adapter": (2, 4), "head": (0, 0)}[critic]
        evaluating = 2 * 2 * (trunk + head) + critics[0] * trunk  # policy, reference, critic
        again = 2 * head if sizes.recompute and not lora else 0
        learning = train * (trunk + head) + again + critics[1] * trunk
    return {"generate": sampling, "score": scoring, "evaluate": evaluating, "learn": sizes.epochs * learning}


def peak_rate(device: str, dtype: torch.dtype, *, size: int, seconds: float = 1.0) -> float:
    """Return the operations per second of the fastest product of two square matrices, on torch's threads.

    Args:
        device: "cuda" or "cpu".
        dtype: Of the matrices.
        size: Their rows and columns.
        seconds: How long to try.
    """
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    out = torch.empty_like(left)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
