# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The policy on the line from its reference: its weights, and what is saved, for every make."""

import copy
import dataclasses

import pytest
import torch
from peft import AutoPeftModelForCausalLM, IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.actor_critic.makes import ROWS, batch, learn, lora_config, reference, scramble
from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.actor_critic.interpolation import WeightPath, _widened, check_scalable
from trl_ext.actor_critic.merge import merge


def sft(config: LoraConfig):
    def make(lm):
        policy = get_peft_model(lm, dataclasses.replace(config), adapter_name="sft")
        scramble(policy, scale=0.2)
        return ActorCritic(policy)

    return make


PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
EVERYWHERE = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
# Each takes a causal LM.
MAKES = {
    "whole": lambda lm: ActorCritic(lm),
    "tied": lambda lm: ActorCritic(AutoModelForCausalLM.from_config(tiny_causal_lm("gpt2").config)),
    "lora": lambda lm: build_actor_critic(lm, "adapter", peft_config=lora_config()),
    "rslora": lambda lm: build_actor_critic(lm, peft_config=LoraConfig(**EVERYWHERE, use_rslora=True, **PATTERNS)),
    "bias": lambda _: build_actor_critic(tiny_causal_lm("gpt2"), peft_config=LoraConfig(**EVERYWHERE, lora_bias=True)),
    "embedding": lambda lm: build_actor_critic(lm, peft_config=LoraConfig(r=4, target_modules=["embed_tokens"])),
    "head too": lambda lm: build_actor_critic(
        lm, peft_config=LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    ),
    "tokens too": lambda lm: build_actor_critic(
        lm, peft_config=LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[20, 21, 30])
    ),
    "sft": sft(LoraConfig(**EVERYWHERE)),
    "sft rslora": sft(LoraConfig(**EVERYWHERE, use_rslora=True, **PATTERNS)),
    "sft head": sft(LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "sft bias": lambda _: sft(LoraConfig(**EVERYWHERE, lora_bias=True))(tiny_causal_lm("gpt2")),
}


def weights(model: ActorCritic, *, trained: bool) -> dict[str, torch.Tensor]:
    """Return every weight of policy or reference as one plain model has them, adapters merged by PEFT."""
    if model.reference is not None:
        return {name: p.clone() for name, p in (model.policy if trained else model.reference).state_dict().items()}
    adapter = model.actor_adapter if trained else model.reference_adapter
    if adapter is None:
        return tiny_causal_lm(model.config.model_type).state_dict()
    one: PeftModel = copy.deepcopy(model.policy)
    one.set_adapter(adapter)
    return one.merge_and_unload(adapter_names=[adapter]).state_dict()


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_weights_are_on_the_line(make):
    """The oracle is PEFT's merge of each end, and the line between the two plain models."""
    model = make(tiny_causal_lm())
    learn(model, batch())
    model.eval()
    start, end = weights(model, trained=False), weights(model, trained=True)
    assert any(not torch.equal(start[name], end[name]) for name in end)
    before, initial = model(*batch()).logps, reference(model, batch())
    path = WeightPath(model)
    for eta in (0.5, 0.25, 1.5):
        path.move_to(eta)
        now = weights(model, trained=True)
        assert now.keys() == end.keys()
        for name, value in now.items():
            expected = start[name].double() + eta * (end[name].double() - start[name].double())
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    path.move_to(0)
    torch.testing.assert_close(model(*batch()).logps, initial, rtol=0, atol=1e-6)
    assert torch.equal(reference(model, batch()), initial), "the reference stays"
    path.move_to(1)
    torch.testing.assert_close(model(*batch()).logps, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["whole", "lora", "head too"])
def test_the_ends_are_exact(name):
    model = MAKES[name](tiny_causal_lm())
    learn(model, batch())
    model.eval()
    trained, initial = model(*batch()).logps, reference(model, batch())
    path = WeightPath(model)
    path.move_to(0)
    assert torch.equal(model(*batch()).logps, initial), "the KL at 0 is exactly 0"
    path.move_to(0.3)
    path.move_to(1)
    assert torch.equal(model(*batch()).logps, trained)


@pytest.mark.parametrize("name", ["whole", "lora", "rslora", "sft rslora", "head too"])
def test_what_is_saved_computes_the_same(name, tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm())
    model, folder = MAKES[name](AutoModelForCausalLM.from_pretrained(base)), tmp_path / "saved"
    learn(model, batch())
    model.eval()
    WeightPath(model).move_to(0.5)
    model.save_policy(folder)
    expected = model(*batch()).logps
    auto = AutoPeftModelForCausalLM if (folder / "adapter_config.json").exists() else AutoModelForCausalLM
    loaded = {"itself": auto.from_pretrained(folder).eval()}
    if auto is AutoPeftModelForCausalLM:
        merge(folder, tmp_path / "merged")
        loaded["merged"] = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    for way, plain in loaded.items():
        for i, (prompt, completion) in enumerate(ROWS):
            with torch.no_grad():
                log_probs = plain(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
            own = log_probs[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]
            torch.testing.assert_close(own, expected[i, : len(completion)], rtol=0, atol=1e-4, msg=way)


def test_adapters_that_are_no_product_are_refused():
    with pytest.raises(ValueError, match="`use_dora`, whose change of the weights is no multiple"):
        check_scalable(LoraConfig(use_dora=True))
    with pytest.raises(ValueError, match="a IA3Config; only LoRA"):
        check_scalable(IA3Config(target_modules=["q_proj"]))


def test_twice_the_rank_has_the_same_scale():
    for config in (LoraConfig(r=4, lora_alpha=6, **PATTERNS), LoraConfig(r=4, use_rslora=True, **PATTERNS)):
        wide = _widened(config)
        assert (wide.r, wide.rank_pattern) == (8, {"q_proj": 4})
        power = 0.5 if config.use_rslora else 1
        assert wide.lora_alpha / wide.r**power == pytest.approx(config.lora_alpha / config.r**power)
