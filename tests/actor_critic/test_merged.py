# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""An adapter that is merged for a while: what the model computes meanwhile, and that nothing of it stays."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.actor_critic.makes import batch, scramble
from tests.tiny_models import tiny_causal_lm
from trl_ext.actor_critic import ActorCritic, add_policy_adapter, build_actor_critic
from trl_ext.actor_critic.merged import check_merges, merged, merged_bytes


def tied() -> PreTrainedModel:
    model = tiny_causal_lm()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


def experts() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"vocab_size": 160, "num_local_experts": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes))


KINDS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "every linear layer": (tiny_causal_lm, {}),
    "rank-stabilized": (tiny_causal_lm, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}),
    "DoRA": (tiny_causal_lm, {"use_dora": True}),
    "a saved module": (tiny_causal_lm, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "a tied head": (tied, {"target_modules": ["v_proj", "lm_head"]}),
    "tied embeddings": (tied, {"target_modules": ["down_proj", "embed_tokens"]}),
    "tied embeddings and head": (tied, {"target_modules": ["down_proj", "embed_tokens", "lm_head"]}),
    "some tokens": (tied, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 20, 31]}),
    "Conv1D": (lambda: tiny_causal_lm("gpt2"), {}),
    "experts": (experts, {}),
}


def make(kind: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    model, options = KINDS[kind]
    policy, _ = add_policy_adapter(model().to(dtype), LoraConfig(**{"r": 4, "lora_alpha": 8} | options))
    scramble(policy, scale=0.2)
    for name, parameter in policy.named_parameters():
        if "trainable_tokens_delta" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.2)
    return policy.eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    ids, mask, _ = batch()
    return model(input_ids=ids, attention_mask=mask).logits[mask.bool()]


def state(model: nn.Module) -> dict[str, tuple[nn.Parameter, Tensor, bool]]:
    found = dict(model.named_parameters(remove_duplicate=False))
    return {name: (p, p.detach().clone(), p.requires_grad) for name, p in found.items()}


def unchanged(model: nn.Module, before: dict[str, tuple[nn.Parameter, Tensor, bool]]) -> bool:
    """The same parameters with the same bits, ties included, and no layer that takes itself for merged."""
    now = dict(model.named_parameters(remove_duplicate=False))
    same = now.keys() == before.keys() and all(
        now[name] is p and torch.equal(p, value) and p.requires_grad is learns
        for name, (p, value, learns) in before.items()
    )
    return same and not any(m.merged for m in model.modules() if isinstance(m, BaseTunerLayer))


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_the_same_with_fewer_products_and_its_base_comes_back_bit_for_bit(kind):
    policy = make(kind)
    before, expected = state(policy), logits(policy)
    with policy.disable_adapter():
        assert not torch.allclose(logits(policy), expected, atol=1e-2), "the adapter does something"
    products: list[int] = []
    matrices = [m for name, m in policy.named_modules() if ".lora_A." in name and isinstance(m, nn.Linear)]
    for matrix in matrices:
        matrix.register_forward_hook(lambda *_: products.append(1))
    with merged(policy):
        assert torch.allclose(logits(policy), expected, atol=1e-4)
        assert not products
        copied = sum(p.nbytes for name, (p, _, _) in before.items() if policy.get_parameter(name) is not p)
    assert unchanged(policy, before) and torch.equal(logits(policy), expected)
    assert copied == merged_bytes(policy) > 0


def test_merged_weights_are_the_sum_rounded_once_whatever_autocast_does():
    """The sum of a bf16 weight and a float32 product, by PEFT itself and with no autocast around."""
    policy, other = (make("every linear layer", torch.bfloat16) for _ in range(2))
    assert next(p for name, p in policy.named_parameters() if "lora_A" in name).dtype == torch.float32
    expected = other.merge_and_unload().model.layers[0].mlp.up_proj.weight
    layer = policy.base_model.model.model.layers[0].mlp.up_proj
    with torch.autocast("cpu", torch.bfloat16), merged(policy):
        assert torch.equal(layer.base_layer.weight, expected) and expected.dtype == torch.bfloat16


def test_other_adapters_stay_out_and_what_they_compute_stays_the_same():
    """Critic, reference and the layers that the critic alone adapts."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = build_actor_critic(tiny_causal_lm(), "adapter", peft_config=config, critic_target_modules=["up_proj"])
    scramble(model)
    before, expected = state(model), model.eval()(*batch(), role="with_reference")
    with model.hold(), merged(model.causal_lm):
        layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
        assert {tuple(m.merged_adapters) for name, m in layers.items() if "up_proj" not in name} == {("default",)}
        copied = [name for name, (p, _, _) in before.items() if model.get_parameter(name) is not p]
        assert copied and all("q_proj" in name or "v_proj" in name for name in copied)
    assert unchanged(model, before)
    again = model(*batch(), role="with_reference")
    assert torch.equal(again.values, expected.values) and torch.equal(again.ref_logps, expected.ref_logps)
    assert torch.equal(again.logps, expected.logps)


def test_with_adapters_off_nothing_is_merged():
    policy = make("every linear layer")
    with policy.disable_adapter():
        expected = logits(policy)
        with merged(policy):
            assert torch.equal(logits(policy), expected)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_the_base_comes_back_after_an_exception(error, monkeypatch):
    policy = make("a tied head")
    before = state(policy)
    with pytest.raises(type(error)), merged(policy):
        raise error
    assert unchanged(policy, before)
    layers = [m for m in policy.modules() if isinstance(m, BaseTunerLayer)]

    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(layers[1], "merge", fail)
    with pytest.raises(type(error)), merged(policy):
        pytest.fail("the second layer was merged")
    assert unchanged(policy, before)


def test_an_adapter_that_peft_cannot_merge_is_refused():
    model = tiny_causal_lm()
    policy = get_peft_model(model, LoraConfig(target_modules=["q_proj"], lora_bias=True))
    before = state(policy)
    words = r"^The policy's adapter cannot be merged into its base \(Impossible to merge LoRA with `lora_bias=True` .*"
    with pytest.raises(ValueError, match=words + "; leave `merge_adapters_while_sampling` out.$"):
        check_merges(policy)
    assert unchanged(policy, before)


def test_without_adapters_nothing_happens():
    model = ActorCritic(tiny_causal_lm())
    before = state(model)
    with merged(model.causal_lm):
        assert unchanged(model, before)
