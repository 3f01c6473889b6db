# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Engines of vLLM for the tests, and what their samples are compared with."""

from typing import Any

import torch

from tests.tiny_models import EOS_ID, tiny_tokenizer
from trl_ext.experience.engines import Completions, TransformersEngine, VLLMEngine

PROMPTS = [[30, 31, 32, 33, 34], [40], [50, 51, 52], [50, 51, 52], [60, 61], [70, 71]]
LENGTH = 12
TEMPERATURE = 0.8


def engine(model: Any, **options: Any) -> VLLMEngine:
    defaults: dict[str, Any] = {"eos_token_ids": [EOS_ID], "max_new_tokens": LENGTH, "temperature": TEMPERATURE}
    return VLLMEngine(tiny_tokenizer(), model=model, max_model_length=64, **{**defaults, **options})


@torch.no_grad()
def logits(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    return model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()


def gap(model: Any, out: Completions) -> float:
    """The largest difference between what vLLM says of its tokens and what the model says now."""
    assert out.logps is not None
    gaps = []
    for prompt, ids, logps in zip(PROMPTS, out.ids, out.logps, strict=True):
        rows = torch.log_softmax(logits(model, prompt, ids) / TEMPERATURE, -1)
        gaps.append((rows.gather(1, torch.tensor(ids)[:, None])[:, 0] - torch.tensor(logps)).abs().max())
    return float(max(gaps))


def check(sampler: VLLMEngine, model: Any) -> None:
    """Sampled tokens have the model's log-probabilities, and the likeliest are transformers' likeliest."""
    assert gap(model, sampler(model, PROMPTS)) < 1e-4
    options: dict[str, Any] = {"eos_token_ids": [EOS_ID], "max_new_tokens": LENGTH, "temperature": 0}
    expected = TransformersEngine(tiny_tokenizer(), **options)(model, PROMPTS)
    sampling = sampler.backend.sampling  # type: ignore[attr-defined]
    sampling["temperature"] = 0.0
    greedy = sampler(model, PROMPTS)
    sampling["temperature"] = TEMPERATURE
    assert greedy.ids == expected.ids and greedy.terminated == expected.terminated


@torch.no_grad()
def move(parameters: list[torch.nn.Parameter], by: float) -> None:
    for parameter in parameters:
        parameter.add_(torch.randn_like(parameter) * by)
