# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Samples, and actor-critics of every make, for the tests in this folder."""

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.tiny_models import PAD_ID, tiny_causal_lm
from trl_ext.actor_critic import ActorCritic, build_actor_critic

ROWS = [([5, 9, 11, 40], [20, 21, 22]), ([8], [30, 31, 32, 33, 34]), ([50, 51, 6], [60])]

Batch = tuple[Tensor, Tensor, Tensor]


def lora_config() -> LoraConfig:
    """A fresh one for every model: PEFT writes the base model's name into it."""
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.5)


def batch(rows: list[tuple[list[int], list[int]]] = ROWS) -> Batch:
    """Prompts padded on the left, completions on the right: ids, attention mask, completion mask."""
    left, right = max(len(p) for p, _ in rows), max(len(c) for _, c in rows)
    ids = [[PAD_ID] * (left - len(p)) + p + c + [PAD_ID] * (right - len(c)) for p, c in rows]
    mask = [[0] * (left - len(p)) + [1] * len(p + c) + [0] * (right - len(c)) for p, c in rows]
    attention_mask = torch.tensor(mask)
    return torch.tensor(ids), attention_mask, attention_mask[:, left:].bool()


def scramble(module: nn.Module, seed: int = 1, scale: float = 0.3) -> None:
    """Give every parameter of adapters and value heads a random value, as if they had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "lora_" in name or "value_head" in name or "modules_to_save" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * scale)


def learn(model: ActorCritic, data: Batch) -> None:
    """Three optimizer steps. What stands before a head or a LoRA matrix that is 0 moves only from the second on."""
    optimizer = torch.optim.Adam([p for _, p in model.actor_parameters() + model.critic_parameters()], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        out = model.train()(*data)
        (out.logps.sum() + (out.values - 1).square().sum()).backward()
        optimizer.step()


def reference(model: ActorCritic, data: Batch) -> Tensor:
    return model(*data, role="reference").logps


def from_scratch() -> ActorCritic:
    return ActorCritic(tiny_causal_lm())


def lora() -> ActorCritic:
    return build_actor_critic(tiny_causal_lm(), peft_config=lora_config())


def two_adapters() -> ActorCritic:
    return build_actor_critic(tiny_causal_lm(), "adapter", peft_config=lora_config())


def trained_adapter(name: str = "default", **options) -> ActorCritic:
    policy = get_peft_model(
        tiny_causal_lm(), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, **options), adapter_name=name
    )
    scramble(policy)
    return ActorCritic(policy)


def not_the_identity() -> ActorCritic:
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return build_actor_critic(tiny_causal_lm(), peft_config=config)


def pissa() -> ActorCritic:
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights="pissa")
    return build_actor_critic(tiny_causal_lm(), peft_config=config)


MAKES = {
    "full": from_scratch,
    "copy": lambda: ActorCritic(tiny_causal_lm(), "copy"),
    "lora": lora,
    "two adapters": two_adapters,
    "trained adapter": trained_adapter,
    "named adapter": lambda: trained_adapter("sft"),
    "dora": lambda: trained_adapter(use_dora=True),
    "a head of its own": lambda: trained_adapter(modules_to_save=["lm_head"]),
    "init_lora_weights=False": not_the_identity,
    "pissa": pissa,
}
