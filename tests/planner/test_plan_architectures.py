# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The planner's counts against real actor-critics of architectures that are not just a stack of linear layers."""

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.planner.plan import Setup, plan
from trl_ext.planner.weights import count, lora_parameters, meta_model

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mixtral": EXPERTS | {"num_local_experts": 4},
    "qwen2_moe": EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    "qwen3_moe": EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16},
    "deepseek_v3": EXPERTS
    | LATENT
    | {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "phimoe": EXPERTS | {"num_local_experts": 4},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "gemma3": {},
}


def settings(name: str) -> PretrainedConfig:
    if name == "gemma3":
        text = SIZES | {"head_dim": 16}
        vision = VISION | {"image_size": 28, "patch_size": 14}
        return AutoConfig.for_model(name, text_config=text, vision_config=vision, mm_tokens_per_image=4)
    fields = SIZES | ARCHITECTURES[name]
    if name == "opt":
        fields = {key: value for key, value in fields.items() if key != "num_key_value_heads"}
    return AutoConfig.for_model(name, **fields)


def real(name: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(settings(name), dtype=torch.float32)


def bytes_of(part: torch.nn.Module | None, trained: bool = False) -> int:
    assert part is not None
    return sum(p.nbytes for p in part.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_full_fine_tuning_from_bf16_takes_what_a_real_actor_critic_takes(name, tmp_path):
    real(name).to(torch.bfloat16).save_pretrained(tmp_path)
    made = build_actor_critic(str(tmp_path), "copy")
    setup = Setup(quantization="none", rank=0, critic="copy", prompt=12, completion=20, rollout=4)
    planned = plan(settings(name), setup)
    assert planned.resident["base"] == bytes_of(made.policy)
    own = {id(p) for p in made.policy.parameters()}
    assert made.reference is not None
    cloned = sum(p.nbytes for p in made.reference.parameters() if id(p) not in own)
    assert planned.resident["reference"] == cloned
    assert planned.resident["critic"] == bytes_of(made.critic)
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert planned.resident["optimizer"] == 8 * trained and planned.phases["learn"]["gradients"] == 4 * trained
    heads = sum(p.numel() for p in made.value_head.parameters())
    assert planned.resident["value head"] == 4 * heads
    assert planned.phases["learn"]["autocast copies"] == 2 * (trained - heads)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lora_takes_what_a_real_actor_critic_takes(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: ActorCritic = build_actor_critic(real(name), peft_config=LoraConfig(r=4))
        assert lora_parameters(meta_model(settings(name)), 4) == sum(p.numel() for _, p in made.actor_parameters())
        planned = plan(settings(name), Setup(rank=4, critic="adapter", prompt=12, completion=20, rollout=4))
    assert planned.peak > sum(planned.resident.values())
    assert planned.resident["actor adapter"] == 4 * sum(p.numel() for _, p in made.actor_parameters())


def test_all_experts_count():
    for name in ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "phimoe"):
        parts = count(meta_model(settings(name)))
        assert parts == sum(p.numel() for p in real(name).parameters())


def test_float32_adapters_on_a_quantized_8b_cost_two_to_three_tenths_of_a_gigabyte_more_than_in_bf16():
    config = AutoConfig.for_model(
        "llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    parameters = lora_parameters(meta_model(config), 16)
    assert parameters == 41_943_040  # as PEFT's and QLoRA's reports say for rank 16 on all linear layers
    # Two bytes more for each weight, its gradient and both of its moments.
    assert 0.2 <= parameters * 2 * 4 / 1e9 <= 0.35
