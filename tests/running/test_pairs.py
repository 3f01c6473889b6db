# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The baseline beside a model: the adapter that training began from, or the base, and their names over columns."""

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.actor_critic import build_actor_critic
from trl_ext.running.pairs import find_pair, load_pair

IDS = torch.tensor([[5, 30, 41, 7]])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A base, an SFT adapter on it, and the folder of a run that trained the adapter on."""
    root = tmp_path_factory.mktemp("world")
    save_tiny(root / "base", tiny_causal_lm())
    base = AutoModelForCausalLM.from_pretrained(root / "base")
    sft = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    sft.save_pretrained(root / "sft")
    trained = build_actor_critic(str(root / "sft"))
    with torch.no_grad():
        for _, parameter in trained.actor_parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    trained.save_policy(root / "run")
    return root


def test_a_run_from_an_adapter_is_seen_beside_that_adapter(world):
    pair = find_pair(str(world / "run"))
    assert pair.notes == (f"The baseline is the adapter '{world}/run/reference', where training began.",)
    model, baseline = load_pair(pair)
    with baseline.switched():
        beside = logits(baseline.model)
    assert torch.allclose(beside, logits(AutoPeftModelForCausalLM.from_pretrained(world / "sft")), atol=1e-5)
    with model.switched():
        ours = logits(model.model)
    assert torch.allclose(ours, logits(AutoPeftModelForCausalLM.from_pretrained(world / "run")), atol=1e-5)
    assert (ours - beside).abs().max() > 0.1
    assert baseline.title.endswith("reference")


def test_the_base_is_the_baseline_where_it_is_named(world):
    pair = find_pair(str(world / "run"), str(world / "base"))
    _, baseline = load_pair(pair)
    with baseline.switched():
        beside = logits(baseline.model)
    assert torch.allclose(beside, logits(AutoModelForCausalLM.from_pretrained(world / "base")), atol=1e-5)
    assert "with its adapter off" in pair.notes[0]


def test_a_long_path_is_named_by_its_last_folder(world):
    place = world / ("a" * 30) / "lm"
    save_tiny(place, tiny_causal_lm())
    assert [member.title for member in load_pair(find_pair(str(place), str(place)))] == ["lm", "baseline lm"]
