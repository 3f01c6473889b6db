# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How much arithmetic an update takes in TRL's last PPOTrainer and in ours: what speed can be expected at the least."""

from typing import NamedTuple


class Sizes(NamedTuple):
    """
    What the count depends on.

    Attributes:
        trunk: Weights of a model's linear layers but the head.
        head: Weights of the head, vocabulary times hidden size.
        prompt, completion: Tokens of a sequence.
        epochs: Passes of learning.
        chunk: A micro-batch has more tokens than a chunk of logits: they are computed twice where the head is trained.
    """

    trunk: int
    head: int
    prompt: int
    completion: int
    epochs: int
    chunk: bool


def operations(trainer: str, *, lora: bool, critic: str, sizes: Sizes) -> int:
    """
    Multiplications and additions for one sequence in one update, those of attention and of elementwise work left out.

    A product with a weight takes 2 operations a token and weight, its backward pass 2 for the input, and 2 more for the
    weight where that is trained. Both sample from the policy, score with a reward model, and evaluate the reference.
    TRL has the policy's log-probabilities from sampling, we take them from the training path. TRL computes logits of
    the prompt too, and its critic is always a whole model, trained in full.

    Args:
        trainer: "trl" or "ours".
        lora: Whether the policy has adapters, whose own weights are too few to count, on a frozen base.
        critic: Ours: "copy", "adapter" or "head".
        sizes: Of the models and texts.
    """
    tokens = sizes.prompt + sizes.completion
    trunk = sizes.trunk * tokens
    sampling = 2 * trunk + 2 * sizes.head * sizes.completion
    train = 4 if lora else 6
    if trainer == "trl":
        head = sizes.head * tokens
        evaluating = 2 * trunk + 2 * head + 2 * trunk + 2 * trunk  # reference, critic, reward model
        return sampling + evaluating + sizes.epochs * (train * (trunk + head) + 6 * trunk)
    head = sizes.head * sizes.completion
    critics = {"copy": (2, 6), "adapter": (2, 4), "head": (0, 0)}[critic]
    evaluating = 2 * (2 * trunk + 2 * head) + 2 * trunk + critics[0] * trunk  # policy, reference, reward model, critic
    again = 2 * head if sizes.chunk and not lora else 0
    return sampling + evaluating + sizes.epochs * (train * (trunk + head) + again + critics[1] * trunk)
