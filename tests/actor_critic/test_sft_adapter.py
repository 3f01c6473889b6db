# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A LoRA adapter's folder as the policy, as SFT leaves one; and Liger kernels in every model of an actor-critic."""

import shutil
import sys
import types

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.actor_critic.makes import ROWS, batch, learn, lora_config, reference, scramble
from tests.actor_critic.test_actor_critic import own_log_probs
from tests.families import FAMILIES, base, sft_adapter
from tests.tiny_models import prompt_dataset, save_tiny, tiny_causal_lm
from trl_ext import PPOConfig, PPOTrainer
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.actor_critic import model as model_module
from trl_ext.actor_critic.names import load_tokenizer


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> str:
    """An adapter without a tokenizer on a bfloat16 base with one."""
    root = tmp_path_factory.mktemp("sft")
    folder = save_tiny(root / "base", tiny_causal_lm().bfloat16())
    policy = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    scramble(policy, scale=0.1)
    policy.save_pretrained(root / "adapter")
    return str(root / "adapter")


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_an_adapter_folder_is_the_policy_and_its_clone_the_reference(critic, sft):
    model, data = build_actor_critic(sft, critic), batch()
    start = reference(model, data)
    assert torch.equal(model.train()(*data).logps, start)
    own = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(f"{sft}/../base"), sft).eval()
    base_alone = AutoModelForCausalLM.from_pretrained(f"{sft}/../base").eval()
    for i, (prompt, completion) in enumerate(ROWS):
        index = torch.tensor(completion)[:, None]
        expected = own_log_probs(own, prompt, completion).gather(1, index)[:, 0].float()
        torch.testing.assert_close(start[i, : len(completion)], expected, rtol=0, atol=0.1)
        assert (
            own_log_probs(base_alone, prompt, completion).gather(1, index)[:, 0] - start[i, : len(completion)]
        ).any()
    assert {p.dtype for _, p in model.actor_parameters()} == {torch.float32} and model.dtype == torch.bfloat16
    learn(model, data)
    assert torch.equal(reference(model, data), start) and not torch.equal(model(*data).logps, start)


def test_its_tokenizer_is_the_bases_unless_it_has_one(sft, tmp_path):
    assert len(load_tokenizer(sft, {})) == 160
    own = shutil.copytree(sft, tmp_path / "own")
    tokenizer = load_tokenizer(sft, {})
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(own)
    assert len(load_tokenizer(str(own), {})) == 161


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapters_of_real_families(family):
    model = ActorCritic(sft_adapter(family, "bfloat16"))
    assert torch.equal(model.train()(*batch()).logps, reference(model, batch()))
    assert {p.dtype for _, p in model.actor_parameters()} == {torch.float32}


def test_a_run_of_our_own_goes_on_as_a_model(sft, tmp_path):
    folder = base("llama", "bfloat16")
    model = build_actor_critic(folder, "adapter", peft_config=lora_config())
    learn(model, batch())
    model.save_pretrained(tmp_path)
    again = build_actor_critic(str(tmp_path), "adapter")
    assert torch.equal(again.eval()(*batch()).logps, model.eval()(*batch()).logps)


def test_the_trainer_takes_it(sft, tmp_path):
    args = PPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_ppo_epochs=1, use_cpu=True,
        max_completion_length=4, critic="adapter", report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = PPOTrainer(sft, lambda completions, **_: [1.0] * len(completions), args, prompt_dataset(4))
    trainer.train()
    assert [entry["kl"] for entry in trainer.state.log_history if "kl" in entry] in ([0.0], [])


def test_added_tokens_come_with_it(tmp_path):
    folder = save_tiny(tmp_path / "base", tiny_causal_lm())
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(170)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    policy = get_peft_model(model, config)
    scramble(policy, scale=0.1)
    policy.save_pretrained(tmp_path / "adapter")
    loaded = ActorCritic(str(tmp_path / "adapter"))
    assert loaded.causal_lm.get_input_embeddings().weight.shape[0] == 170
    assert torch.equal(loaded.train()(*batch()).logps, reference(loaded, batch()))


def test_liger_kernels_go_into_every_model(monkeypatch):
    """With a stand-in for liger-kernel, which is not installed here."""
    patched: list[object] = []
    stand_in = types.ModuleType("liger_kernel.transformers")
    stand_in._apply_liger_kernel_to_instance = lambda model, **kwargs: patched.append((model, kwargs))
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", stand_in)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    model = ActorCritic(tiny_causal_lm(), "copy")
    model.apply_liger_kernel({"rope": False})
    assert [m for m, _ in patched] == [model.policy, model.reference, model.critic]
    assert all(kwargs == {"rope": False} for _, kwargs in patched)
    assert model_module.apply_liger_kernel.__module__ == "transformers.integrations.liger"
