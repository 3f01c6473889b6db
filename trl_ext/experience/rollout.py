# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One batch of experience, from sampling to learning."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .seeds import generator_of


@dataclass
class Rollout:
    """N prompts, their completions, and the tensors that PPO learns from; P prompt and C completion columns.

    Prompts are padded on the left, completions on the right. The masks come from the lengths that were sampled, never
    from comparing ids with the pad token. All tensors lie on one device; the float ones are float32 and, but for
    `rewards_so_far`, 0 outside `completion_mask`.

    Attributes:
        input_ids: Prompt and completion tokens, int64, (N, P + C).
        attention_mask: 1 for real tokens, int64, (N, P + C).
        completion_mask: True for the tokens that were sampled and are learned from, bool, (N, C).
        terminated: Whether the completion ended by itself, bool, (N,).
        valid: Whether the sample could be scored, bool, (N,). Others have an empty completion mask.
        held_out: Whether the critic must not learn from the sample, bool, (N,).
        scores: Reward that the last token of a completion earns, (N,).
        token_scores: Rewards of the single tokens, which count in addition, (N, C); zeros without.
        old_logps: Log-probabilities before the update, from the training path, nats, (N, C).
        ref_logps: Log-probabilities under the reference, nats, (N, C).
        kl: KL(policy || reference) before the update at the state of each token, over the vocabulary, nats, (N, C).
        old_values: Values before the update, (N, C).
        advantages: Advantages of the sampled tokens, (N, C).
        returns: Targets of the critic, (N, C).
        weights: Importance weights pi_old / pi_engine of the tokens, (N, C); ones without correction.
        kl_coefs: Coefficient of the exact KL in the loss, in the units of the advantages, (N,); 0 with an estimator.
        ref_states: The reference's hidden state before each token, (N, C, D), in the dtype of the trunk. Only for the
            exact KL in the loss: the reference's distribution of every token then costs no pass of its trunk.
        value_gap: With two critics, whose mean is `old_values`: half of what the second one's values exceed the first
            one's by, (N, C).
        rewards_so_far: For a critic that reads it: reward of what was written before each token and after the last,
            less what its tokens have earned, (N, C + 1); not 0 behind a completion's end. See `RewardsSoFar`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    terminated: Tensor
    valid: Tensor
    held_out: Tensor
    scores: Tensor
    token_scores: Tensor
    old_logps: Tensor
    ref_logps: Tensor
    kl: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor
    kl_coefs: Tensor
    ref_states: Tensor | None = None
    value_gap: Tensor | None = None
    rewards_so_far: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def completion_length(self) -> int:
        """Number of completion columns, C."""
        return self.completion_mask.shape[1]

    @property
    def rows(self) -> Tensor:
        """Indices of all samples, int64, (N,)."""
        return torch.arange(len(self), device=self.input_ids.device)

    @property
    def lengths(self) -> Tensor:
        """Tokens of the prompt and of the completion of each sample, int64, (N, 2)."""
        tokens = self.attention_mask.split(
            [self.input_ids.shape[1] - self.completion_length, self.completion_length], 1
        )
        return torch.stack([part.sum(1) for part in tokens], dim=1)

    def minibatch(self, step: int, num_mini_batches: int, seed: tuple[int, ...]) -> Tensor:
        """Return the samples that an optimizer step learns from, as `minibatch_rows` does, by length."""
        return self.by_length(minibatch_rows(len(self), step, num_mini_batches, seed).to(self.input_ids.device))

    def first_pass(self, num_mini_batches: int) -> Tensor:
        """Return all samples in the order in which the first pass of `num_mini_batches` steps learns from them."""
        return torch.cat([self.by_length(rows) for rows in self.rows.chunk(num_mini_batches)])

    def by_length(self, rows: Tensor) -> Tensor:
        """Return the samples `rows`, (n,), the longest first: neighbours then need little padding.

        The longest come first so that memory runs out at once, if it does at all.
        """
        return rows[self.lengths[rows].sum(1).argsort(descending=True, stable=True)]

    def to(self, device: torch.device | str) -> "Rollout":
        """Return the rollout on another device; itself where it lies there."""
        return Rollout(**{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def select(self, rows: Tensor) -> "Rollout":
        """Return the samples `rows`, int64 (n,), as a rollout without columns that are padding in all of them."""
        return Rollout(**{name: tensor[rows] for name, tensor in self._tensors().items()})._trimmed()

    def _tensors(self) -> dict[str, Tensor]:
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _trimmed(self) -> "Rollout":
        prompt_width = self.input_ids.shape[1] - self.completion_length
        used = self.attention_mask.any(dim=0)
        left = int(used[:prompt_width].int().argmax())
        width = max(1, int(used[prompt_width:].sum()))
        fields = {}
        for name, tensor in self._tensors().items():
            if name in ("input_ids", "attention_mask"):
                tensor = tensor[:, left : prompt_width + width]
            elif name == "rewards_so_far":
                tensor = tensor[:, : width + 1]
            elif tensor.dim() > 1:
                tensor = tensor[:, :width]
            fields[name] = tensor
        return Rollout(**fields)

    def save(self, path: str | Path) -> None:
        """Write the rollout as one safetensors file."""
        save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "Rollout":
        """Read what `save` wrote, bit for bit."""
        # On the CPU first: safetensors does not know every name of a device, such as "cpu:0" of a run of two processes.
        tensors = load_file(path)
        # An earlier version did not write these, and did not learn from them.
        for name in ("kl", "token_scores"):
            tensors.setdefault(name, torch.zeros_like(tensors["old_logps"]))
        tensors.setdefault("kl_coefs", torch.zeros_like(tensors["scores"]))
        tensors.setdefault("held_out", torch.zeros_like(tensors["valid"]))
        return cls(**{name: tensor.to(device) for name, tensor in tensors.items()})


def collate(
    prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    terminated: list[bool],
    *,
    pad_token_id: int,
    device: torch.device | str = "cpu",
) -> Rollout:
    """Pad samples into a [`Rollout`] whose scores, log-probabilities and values are still 0.

    Args:
        prompt_ids: Token ids of each prompt.
        completion_ids: Token ids of each completion, with the token that ended it.
        terminated: Whether each completion ended by itself.
        pad_token_id: Fills the padding; may equal a real token.
    """
    rows = list(zip(prompt_ids, completion_ids, strict=True))
    left, right = max(len(p) for p, _ in rows), max(1, max(len(c) for _, c in rows))

    def padded(prompt: list[int], completion: list[int], fill: int) -> list[int]:
        return [fill] * (left - len(prompt)) + prompt + completion + [fill] * (right - len(completion))

    input_ids = torch.tensor([padded(p, c, pad_token_id) for p, c in rows], device=device)
    mask = torch.tensor([padded([1] * len(p), [1] * len(c), 0) for p, c in rows], device=device)
    unknown = ("token_scores", "old_logps", "ref_logps", "kl", "old_values", "advantages", "returns")
    return Rollout(
        input_ids=input_ids,
        attention_mask=mask,
        completion_mask=mask[:, left:].bool(),
        terminated=torch.tensor(terminated, device=device),
        valid=torch.ones(len(rows), dtype=torch.bool, device=device),
        held_out=torch.zeros(len(rows), dtype=torch.bool, device=device),
        scores=torch.zeros(len(rows), device=device),
        **{name: torch.zeros(len(rows), right, device=device) for name in unknown},
        weights=torch.ones(len(rows), right, device=device),
        kl_coefs=torch.zeros(len(rows), device=device),
    )


def forward(model: nn.Module, batch: Rollout, **options: Any) -> Any:
    """Return a model's output for a part of a rollout; `options` go to `ActorCritic.forward`."""
    if batch.rewards_so_far is not None:
        options["rewards_so_far"] = batch.rewards_so_far
    return model(batch.input_ids, batch.attention_mask, batch.completion_mask, **options)


def minibatch_rows(n: int, step: int, num_mini_batches: int, seed: tuple[int, ...]) -> Tensor:
    """Return the samples that optimizer step number `step` on a rollout of `n` learns from, int64, (n / minibatches,).

    The order of every pass follows from the seed alone, so that a run resumed between two steps of a rollout goes on
    with the same minibatches. The first pass keeps the order of the forward passes that gave the old log-probabilities:
    the first minibatch repeats the very same computation, and the ratio is 1 to the last bit.
    """
    epoch, number = divmod(step, num_mini_batches)
    order = torch.arange(n)
    if epoch > 0:
        order = torch.randperm(n, generator=generator_of(*seed, epoch))
    return order.chunk(num_mini_batches)[number]
