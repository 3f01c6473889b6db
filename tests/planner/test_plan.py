# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The planner: published sizes, roles against a real actor-critic, what a change saves, and what is refused."""

import dataclasses
import functools
import re
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, BitsAndBytesConfig

from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.actor_critic import ActorCritic, add_policy_adapter, build_actor_critic
from trl_ext.actor_critic.merged import merged
from trl_ext.planner import plan as module
from trl_ext.planner.plan import (
    GIB,
    Footprint,
    advise,
    fewest_checkpoints,
    largest_micro_batch,
    largest_model,
    load_config,
    plan,
    sampling_batch,
)
from trl_ext.planner.setup import Setup
from trl_ext.planner.shapes import SHAPES
from trl_ext.planner.weights import base_bytes, meta_model

PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3-8b": 8_030_261_248,
    "phi-4": 14_659_507_200,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
}
TINY: dict[str, Any] = {
    "prompt": 12,
    "completion": 20,
    "rank": 4,
    "rollout": 8,
    "dtype": "float32",
    "generation_batch": 1,
}


def tiny(arch: str = "llama"):
    return tiny_causal_lm(arch, hidden_size=64, layers=3).config


@functools.cache
def peak(**options) -> int:
    return plan(tiny(), Setup(**TINY | options)).peak


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_as_many_as_published(name):
    assert base_bytes(meta_model(load_config(name)), "none") == 2 * PUBLISHED[name]


def test_nf4_base_of_the_largest_is_a_little_more_than_half_a_byte_each():
    model = meta_model(load_config("llama-3-8b"))
    in_full = 2 * 2 * 128256 * 4096 + 65 * 4096 * 2  # embeddings, head and norms stay in bfloat16
    rest = PUBLISHED["llama-3-8b"] - in_full // 2
    assert base_bytes(model, "nf4") - in_full == pytest.approx(rest * (0.5 + 1 / 64 + 4 / 64 / 256), rel=1e-3)


def roles(actor_critic: ActorCritic) -> dict[str, int]:
    found = dict.fromkeys(("base", "actor adapter", "critic adapter", "reference adapter", "value head"), 0)
    for name, parameter in actor_critic.named_parameters():
        kind = next((k for k in ("critic", "reference") if re.search(rf"\.{k}(_2)?\.", name)), "actor")
        role = "value head" if "value_head" in name else f"{kind} adapter" if "lora_" in name else "base"
        found[role] += parameter.nbytes
    return {role: size for role, size in found.items() if size}


@pytest.mark.parametrize(("arch", "critics"), [("llama", 1), ("phi", 1), ("llama", 2)])
def test_roles_are_those_of_a_real_actor_critic(arch, critics):
    lora = LoraConfig(r=4, target_modules="all-linear")
    policy, options = tiny_causal_lm(arch, hidden_size=64, layers=3), {"critic_lora_rank": 2, "num_critics": critics}
    actor_critic = build_actor_critic(policy, "adapter", peft_config=lora, **options)
    setup = Setup(quantization="none", critic="adapter", critic_rank=2, num_critics=critics, **TINY)
    resident = dict(plan(tiny(arch), setup).resident)
    trained = sum(p.numel() for p in actor_critic.parameters() if p.requires_grad)
    assert resident.pop("optimizer") == 8 * trained
    assert resident == roles(actor_critic)
    assert plan(tiny(arch), setup).phases["learn"]["gradients"] == 4 * trained


def test_adapters_on_a_quantized_base_are_float32(tmp_path):
    name = save_tiny(tmp_path, tiny_causal_lm(hidden_size=64, layers=3).to(torch.bfloat16))
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    lora = LoraConfig(r=4, target_modules="all-linear")
    real = roles(build_actor_critic(name, "adapter", peft_config=lora, quantization_config=settings))
    planned = plan(tiny(), Setup(critic="adapter", **TINY | {"dtype": "bfloat16"})).resident
    for role in ("actor adapter", "critic adapter", "value head"):
        assert planned[role] == real[role]


@pytest.mark.parametrize("rank", [0, 4])
def test_an_average_is_a_copy_of_what_is_trained(rank):
    setup = Setup(**(TINY | {"quantization": "none", "critic": "head", "rank": rank}))
    averaged = plan(tiny(), dataclasses.replace(setup, policy_ema=True)).resident
    alone = plan(tiny(), setup).resident
    assert averaged.pop("policy average") == alone["actor adapter" if rank else "reference"]
    assert averaged == alone


def test_the_exact_kl_keeps_the_references_states_of_a_rollout():
    setup = Setup(**(TINY | {"rollout": 32, "completion": 16}))
    plain, exact = (plan(tiny(), dataclasses.replace(setup, kl_estimator=name)) for name in ("k1", "exact"))
    # 32 completions of 16 tokens, 64 numbers of four bytes each.
    assert exact.phases["evaluate"].pop("reference's states") == 32 * 16 * 64 * 4
    assert exact.phases["learn"].pop("reference's states") == 32 * 16 * 64 * 4
    assert exact.phases["evaluate"] == plain.phases["evaluate"] and exact.resident == plain.resident
    assert sum(exact.phases["learn"].values()) > sum(plain.phases["learn"].values()), "two models' logits at a time"


def test_a_reference_adapter_is_a_clone_of_the_actors():
    policy = get_peft_model(tiny_causal_lm(hidden_size=64, layers=3), LoraConfig(r=4, target_modules="all-linear"))
    planned = plan(tiny(), Setup(quantization="none", critic="head", reference_adapter=True, **TINY)).resident
    assert {k: v for k, v in planned.items() if k != "optimizer"} == roles(ActorCritic(policy))


def test_full_fine_tuning_has_a_reference_and_a_critic_of_its_own():
    actor_critic = build_actor_critic(tiny_causal_lm(hidden_size=64, layers=3), "copy")
    resident = plan(tiny(), Setup(quantization="none", critic="copy", **TINY | {"rank": 0})).resident
    for role, part in (("base", "policy"), ("reference", "reference"), ("critic", "critic")):
        assert resident[role] == sum(p.nbytes for p in getattr(actor_critic, part).parameters())
    trained = sum(p.numel() for p in actor_critic.parameters() if p.requires_grad)
    assert resident["optimizer"] == 8 * trained


def test_reward_adapters_cost_as_much_as_the_actors_and_a_head():
    none, two = (plan(tiny(), Setup(reward_adapters=n, **TINY)) for n in (0, 2))
    expected = 2 * (none.resident["actor adapter"] + (64 + 1) * 4)
    assert two.resident["reward adapters"] == expected
    assert set(two.phases) - set(none.phases) == {"score"}


def test_a_card_is_used_up_to_its_limit():
    # 95% of 12 GiB less half a GiB are 10.9 GiB.
    sizes = {
        gib: Footprint({"base": int(5 * GIB)}, {"learn": {"logits": int((gib - 5) * GIB)}}, 1, 1)
        for gib in (10.89, 10.91)
    }
    assert sizes[10.89].fits(12) and not sizes[10.91].fits(12)
    assert sizes[10.89].peak == pytest.approx(10.89 * GIB, abs=2)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({}, {"micro_batch": 4}),
        ({}, {"completion": 90}),
        ({"critic_rank": 2}, {}),
        ({"critic": "head"}, {}),
        ({"optimizer": "paged_adamw_8bit"}, {}),
        ({}, {"gradient_checkpointing": False}),
        ({}, {"quantization": "int8"}),
    ],
)
def test_more_of_anything_takes_more(less, more):
    base = {"critic": "adapter", "micro_batch": 2}
    assert peak(**base | less) < peak(**base | more)


def test_a_chunk_of_logits_counts_where_the_vocabulary_is_large():
    model = tiny_causal_lm(vocab_size=4096).config
    small, large = (plan(model, Setup(**TINY, logits_chunk_size=size)).peak for size in (4, 16))
    # At least the logits and their float32 log-probabilities, which for float32 logits is twice the same.
    assert large - small >= (16 - 4) * 4096 * 4 * 2


def test_batches_without_gradients_are_as_large_as_costs_nothing():
    setup = Setup(
        critic="adapter", reward_adapters=1, **TINY | {"rollout": 256, "micro_batch": 4, "generation_batch": None}
    )
    chosen = plan(tiny(), setup)
    learning = max(chosen.phase_peak("learn"), chosen.phase_peak("evaluate"))
    assert chosen.peak == learning and 1 < chosen.generation_batch == chosen.reward_batch < 64
    doubled = 2 * chosen.generation_batch
    larger = plan(tiny(), dataclasses.replace(setup, generation_batch=doubled, reward_batch=doubled))
    assert larger.peak > learning


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_merged_weights_are_as_large_as_those_that_a_real_policy_copies(arch):
    policy, _ = add_policy_adapter(tiny_causal_lm(arch, hidden_size=64, layers=3), LoraConfig(r=4))
    before = {name: p.data_ptr() for name, p in policy.named_parameters()}
    with merged(policy):
        copied = sum(p.nbytes for name, p in policy.named_parameters() if p.data_ptr() != before[name])
    setup = Setup(quantization="none", **TINY)
    without, beside = (
        plan(tiny(arch), dataclasses.replace(setup, merge_adapters_while_sampling=on)) for on in (False, True)
    )
    assert beside.phases["generate"].pop("merged weights") == copied > 0
    assert beside == without, "in no other phase"


def test_beside_merged_weights_there_is_room_for_fewer():
    setup = Setup(quantization="none", **TINY | {"rollout": 64, "merge_adapters_while_sampling": True})
    copies = plan(tiny(), setup).phases["generate"]["merged weights"]
    peak = plan(tiny(), dataclasses.replace(setup, generation_batch=32)).phase_peak("generate")
    card = (peak - copies / 2 + module.CUDA_CONTEXT) / module.USABLE_FRACTION / GIB  # lacks half of the copies' room
    assert sampling_batch(tiny(), setup, card) == 16
    assert sampling_batch(tiny(), dataclasses.replace(setup, merge_adapters_while_sampling=False), card) == 32


def test_vllm_takes_its_share_of_the_card_and_samples_there():
    without, beside = (plan(tiny(), Setup(vllm_gpu_memory_utilization=share, **TINY)) for share in (0.0, 0.3))
    assert "KV cache" in without.phases["generate"] and "KV cache" not in beside.phases["generate"]
    card = (beside.peak + module.CUDA_CONTEXT) / (module.USABLE_FRACTION - 0.3) / GIB
    assert beside.fits(card * 1.001) and not beside.fits(card * 0.999) and without.fits(card * 0.999)


def test_as_few_layers_are_checkpointed_as_fit():
    setup = Setup(critic="adapter", **TINY | {"micro_batch": 4, "generation_batch": 1})
    model = tiny_causal_lm(hidden_size=64, layers=8).config

    def card(every: int) -> float:
        changed = dataclasses.replace(setup, gradient_checkpointing=every > 0, every_n_layers=max(1, every))
        return (plan(model, changed).peak + module.CUDA_CONTEXT) / module.USABLE_FRACTION / GIB

    cards = {every: card(every) + 1e-6 for every in (0, 4, 1)}
    assert fewest_checkpoints(model, setup, [*cards.values(), 0.1]) == {
        **{size: every for every, size in cards.items()},
        0.1: None,
    }
    with pytest.raises(ValueError, match="`every_n_layers` 2 needs `gradient_checkpointing`"):
        Setup(every_n_layers=2, gradient_checkpointing=False)


def test_largest_micro_batch_is_the_last_that_fits():
    setup = Setup(critic="adapter", **TINY | {"rollout": 16})
    peaks = {size: plan(tiny(), dataclasses.replace(setup, micro_batch=size)) for size in (4, 8)}
    between = (sum(f.peak for f in peaks.values()) / 2 + module.CUDA_CONTEXT) / module.USABLE_FRACTION / GIB
    assert largest_micro_batch(tiny(), setup, [0.1, between, 80]) == {0.1: None, between: 4, 80: 16}


def test_largest_model_is_the_last_that_fits(monkeypatch):
    shapes = {name: tiny_causal_lm(layers=layers).config.to_dict() for name, layers in (("small", 2), ("large", 6))}
    monkeypatch.setattr(module, "SHAPES", shapes)
    setup = Setup(**TINY)
    sizes = [plan(AutoConfig.for_model(**shape), setup).peak for shape in shapes.values()]
    between = (sum(sizes) / 2 + module.CUDA_CONTEXT) / module.USABLE_FRACTION / GIB
    assert largest_model(setup, [0.1, between, 8]) == {0.1: None, between: "small", 8: "large"}


def test_advice_says_what_each_change_saves(monkeypatch):
    monkeypatch.setattr(module, "GIB", 1000)  # this model is too small for savings in MiB
    options = {"critic": "adapter", "generation_batch": 512}
    now = peak(**options)
    advice = dict(advise(tiny(), Setup(**TINY | options), now))
    assert advice["generation_batch=None instead of 512"] == now - peak(critic="adapter", generation_batch=None)
    assert advice["critic='head' instead of 'adapter'"] == now - peak(critic="head", generation_batch=512)
    assert list(advice.values()) == sorted(advice.values(), reverse=True)
    assert not any("quantization" in text for text in advice)  # int8 would take more
    whole = Setup(**TINY | {"rank": 0, "quantization": "none"})
    lora = [text for text, _ in advise(tiny(), whole, plan(tiny(), whole).peak) if text.startswith("rank=")]
    assert lora == ["rank=16 instead of 0"]  # the critic stays a head


def test_with_a_static_cache_there_is_room_for_fewer():
    """Prompts of 12 tokens take as much of it as prompts of 256."""
    setup = Setup(quantization="none", **TINY | {"rollout": 64})
    static = dataclasses.replace(setup, cache_implementation="static")
    card = (plan(tiny(), dataclasses.replace(setup, generation_batch=32)).phase_peak("generate")) * 1.5
    card = (card + module.CUDA_CONTEXT) / module.USABLE_FRACTION / GIB
    assert sampling_batch(tiny(), static, card) < sampling_batch(tiny(), setup, card)
    peak = plan(tiny(), dataclasses.replace(static, generation_batch=32)).peak
    advice = dict(advise(tiny(), dataclasses.replace(static, generation_batch=32), peak))
    assert advice["cache_implementation=None instead of 'static'"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantization": "fp4"}, "nf4, int8, none"),
        ({"critic": "model"}, "head, adapter, copy"),
        ({"optimizer": "lion"}, "adamw_torch"),
        ({"cache_implementation": "dynamic"}, "`cache_implementation` must be one of static, got dynamic"),
        ({"prompt": 0}, "`prompt` must be at least 1"),
        ({"rank": -1}, "`rank` must be 0 or more"),
        ({"generation_batch": 0}, "`generation_batch`"),
        ({"rank": 0}, "nf4 weights do not allow"),
        ({"rank": 0, "quantization": "none", "critic": "adapter"}, "without adapters"),
        ({"critic": "copy"}, "'copy' copies a whole model"),
        ({"merge_adapters_while_sampling": True}, "needs adapters and a base that is not quantized"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Setup(**options)
