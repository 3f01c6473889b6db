# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Architectures with a peculiarity: a projection behind the trunk, random routing, a vision tower, no mask."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
)

from tests.actor_critic.makes import ROWS, batch, learn, lora_config, reference, scramble
from tests.actor_critic.test_actor_critic import own_log_probs
from tests.tiny_models import VOCAB_SIZE, tiny_causal_lm
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.actor_critic.trunk import text_trunk

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def config(arch: str, **options: Any):
    return AutoConfig.for_model(arch, **SIZES | options)


def causal(arch: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(arch, **options), dtype=torch.float32)


def opt_350m() -> PreTrainedModel:
    """Embeddings and last hidden states of 16, layers of 32, norms behind them."""
    return causal("opt", ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False, init_std=0.2)


def phimoe() -> PreTrainedModel:
    return causal("phimoe", num_local_experts=4, initializer_range=0.3)


def gemma3() -> PreTrainedModel:
    text = config("gemma3_text", head_dim=8, initializer_range=0.2, sliding_window=64).to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(whole)


def expected_logps(model: PreTrainedModel) -> list[torch.Tensor]:
    rows = []
    for prompt, completion in ROWS:
        log_probs = own_log_probs(model.eval(), prompt, completion)
        rows.append(log_probs.gather(1, torch.tensor(completion)[:, None])[:, 0].float())
    return rows


def assert_sound(model: ActorCritic, own: PreTrainedModel) -> None:
    """Log-probabilities are the model's own, the KL starts at 0, the reference stays, and both parts learn."""
    data = batch()
    out, start = model.train()(*data), reference(model, data)
    assert torch.equal(out.logps, start)
    for i, logps in enumerate(expected_logps(own)):
        torch.testing.assert_close(out.logps[i, : len(logps)], logps, rtol=0, atol=1e-4)
    assert torch.equal(model.eval()(*data).logps, out.logps), "training mode computes what eval mode does"
    learn(model, data)
    assert torch.equal(reference(model, data), start)
    after = model(*data)
    assert not torch.equal(after.logps, start) and after.values.abs().max() > 0


@pytest.mark.parametrize("make", [opt_350m, phimoe, gemma3])
@pytest.mark.parametrize("critic", ["head", "adapter", "copy", "object"])
def test_every_critic_on_every_peculiar_model(make, critic):
    given: Any = tiny_causal_lm() if critic == "object" else critic
    if critic == "object":
        given = make()
    model = build_actor_critic(make(), given, peft_config=lora_config() if critic == "adapter" else None)
    assert_sound(model, make())


@pytest.mark.parametrize("make", [opt_350m, gemma3])
def test_saved_and_loaded_by_name(make, tmp_path):
    make().save_pretrained(tmp_path / "base")
    model = ActorCritic(str(tmp_path / "base"), "copy")
    learn(model, batch())
    trained = model.eval()(*batch())
    model.save_pretrained(tmp_path / "run")
    fresh = ActorCritic(str(tmp_path / "base"), "copy").eval()
    fresh.load_pretrained(tmp_path / "run")
    loaded = fresh(*batch())
    assert torch.equal(loaded.logps, trained.logps) and torch.equal(loaded.values, trained.values)
    again = ActorCritic(str(tmp_path / "run"), str(tmp_path / "base")).eval()
    assert torch.equal(again(*batch()).logps, trained.logps)


def test_a_critic_from_a_reward_model_with_a_projection_starts_as_the_reward_model():
    options = {"ffn_dim": 64, "word_embed_proj_dim": 16, "num_labels": 1, "do_layer_norm_before": False}
    reward_model = AutoModelForSequenceClassification.from_config(config("opt", **options)).eval()
    expected = []
    for prompt, completion in ROWS:
        with torch.no_grad():
            expected.append(reward_model(input_ids=torch.tensor([prompt + completion])).logits.item())
    values = ActorCritic(opt_350m(), reward_model).eval()(*batch()).values
    scores = [values[i, len(completion)].item() for i, (_, completion) in enumerate(ROWS)]
    assert scores == pytest.approx(expected, abs=1e-5) and max(scores) - min(scores) > 1e-4


def vision_parts(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [model.base_model.vision_tower, model.base_model.multi_modal_projector]


def test_a_vision_tower_is_neither_trained_nor_copied():
    policy = gemma3()
    vision = {id(p) for part in vision_parts(policy) for p in part.parameters()}
    model = ActorCritic(policy, "copy")
    trained = {id(p) for _, p in model.actor_parameters() + model.critic_parameters()}
    assert vision and not vision & trained
    assert {id(p) for part in vision_parts(model.reference) for p in part.parameters()} == vision, "shared"
    size = sum(p.numel() for p in text_trunk(policy).parameters())
    assert sum(p.numel() for p in model.critic.parameters()) == size
    everything = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.value_head.parameters())
    # Gemma's head is its embeddings, so that each of policy, reference and critic is one language model.
    assert everything == 3 * size + sum(p.numel() for part in vision_parts(policy) for p in part.parameters())


@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj", "fc1"]])
def test_no_adapter_on_a_vision_tower(targets):
    config = LoraConfig(r=4, target_modules=targets)
    model = build_actor_critic(gemma3(), "adapter", peft_config=config)
    names = [name for name, _ in model.actor_parameters() + model.critic_parameters()]
    assert any("language_model" in name for name in names)
    assert not any("lora_" in name and "vision_tower" in name for name, _ in model.named_parameters())
    scramble(model)
    out = model.train()(*batch())
    (out.logps.sum() + out.values.sum()).backward()
    assert all(p.grad is not None for _, p in model.actor_parameters() + model.critic_parameters())


def test_a_vision_tower_that_comes_with_adapters_is_not_trained():
    policy = get_peft_model(gemma3(), LoraConfig(r=4, target_modules=["q_proj"]))
    assert any("vision_tower" in name and p.requires_grad for name, p in policy.named_parameters())
    model = ActorCritic(policy, "adapter")
    assert not any("vision_tower" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("rwkv", {"context_length": 64, "attention_hidden_size": 32}),
        ("xlstm", {"num_heads": 4, "num_blocks": 2}),
        ("recurrent_gemma", {"num_key_value_heads": 1, "lru_width": 32, "head_dim": 8}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_the_mask_is_refused(arch, options, dtype):
    own = causal(arch, **options).to(dtype)
    with pytest.raises(ValueError, match=f"`model` is a {type(own).__name__[:4]}.*ignores the attention mask"):
        ActorCritic(own)
    with pytest.raises(ValueError, match="`critic` is a .* ignores the attention mask"):
        ActorCritic(tiny_causal_lm(), own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("gemma2", {"head_dim": 8}),
        ("gemma3_text", {"head_dim": 8}),
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3_moe", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_models_that_mask_are_taken(arch, options, dtype):
    ActorCritic(causal(arch, **options).to(dtype))


def test_recurrent_models_that_mask_are_taken():
    ActorCritic(causal("mamba"))


def test_what_training_mode_draws_is_turned_off():
    """Layer drop, and the noise of routers, beside dropout."""
    dropping = causal("opt", ffn_dim=64, word_embed_proj_dim=32, layerdrop=0.9, dropout=0.5)
    noisy = causal("mixtral", num_local_experts=4, router_jitter_noise=0.5)
    for policy in (dropping, noisy):
        model = ActorCritic(policy, copy.deepcopy(policy))
        assert_sound(model, policy)


def test_what_cannot_be_turned_off_is_refused():
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) * self.training

    policy = tiny_causal_lm()
    policy.model.norm = torch.nn.Sequential(policy.model.norm, Noisy())
    with pytest.raises(ValueError, match="`model` is a LlamaModel, which computes something else in training mode"):
        ActorCritic(policy)
