# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models by name and by object, and the mistakes people make with them."""

from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import BitsAndBytesConfig, PreTrainedModel

from tests.actor_critic.makes import batch, lora_config
from tests.tiny_models import VOCAB_SIZE, prompt_dataset, save_tiny, tiny_causal_lm, tiny_classifier
from trl_ext import PPOConfig, PPOTrainer
from trl_ext.actor_critic import ActorCritic, build_actor_critic


def test_a_policy_by_name_equals_the_object(tmp_path):
    folder = save_tiny(tmp_path, tiny_causal_lm())
    by_name, by_object = ActorCritic(folder).eval(), ActorCritic(tiny_causal_lm()).eval()
    assert torch.equal(by_name(*batch()).logps, by_object(*batch()).logps)


class LoadedOn(Exception):
    """Where a model by name was about to be loaded to."""


@pytest.mark.parametrize("part", ["policy", "policy with LoRA", "critic", "trainer"])
def test_models_by_name_are_loaded_onto_the_device(part, tmp_path, monkeypatch):
    """So the checks that compute with them find them there: kernels of flash attention refuse tensors of a CPU."""

    def from_pretrained(cls: type, *args: Any, device_map: Any = None, **options: Any) -> None:
        raise LoadedOn(device_map)

    device = torch.device("cuda", 0)
    folder = save_tiny(tmp_path / "model", tiny_causal_lm())
    policy = tiny_causal_lm()
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))
    args = PPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    monkeypatch.setattr(PPOConfig, "device", device)
    with pytest.raises(LoadedOn) as caught:
        if part == "trainer":
            PPOTrainer(folder, lambda completions, **_: [0.0] * len(completions), args, prompt_dataset(8))
        elif part == "critic":
            build_actor_critic(policy, folder, device=device)
        else:
            build_actor_critic(folder, peft_config=lora_config() if "LoRA" in part else None, device=device)
    assert caught.value.args == ({"": device},)


def test_an_actor_critic_is_taken_as_it_is():
    model = ActorCritic(tiny_causal_lm())
    assert build_actor_critic(model) is model
    with pytest.raises(ValueError, match="`model` is an ActorCritic"):
        build_actor_critic(model, peft_config=lora_config())


def test_a_classifier_is_no_policy(tmp_path):
    classifier = tiny_classifier()
    with pytest.raises(ValueError, match="is a BertForSequenceClassification, not a causal language model"):
        ActorCritic(save_tiny(tmp_path, classifier))
    with pytest.raises(ValueError, match="is a BertForSequenceClassification, not a causal language model"):
        ActorCritic(classifier)
    with pytest.raises(ValueError, match="is a LlamaForSequenceClassification, not a causal language model"):
        ActorCritic(tiny_classifier(arch="llama"))
    with pytest.raises(ValueError, match="is a LlamaModel, not a causal language model"):
        ActorCritic(tiny_causal_lm().model)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), 5])
def test_something_that_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match=f"got {type(model).__name__}"):
        ActorCritic(model)


def test_a_critic_adapter_needs_a_policy_adapter():
    with pytest.raises(ValueError, match="`critic='adapter'` .* needs `peft_config`"):
        ActorCritic(tiny_causal_lm(), "adapter")


def test_a_copy_of_a_model_with_adapters_is_refused():
    with pytest.raises(ValueError, match="with adapters use `critic='adapter'`"):
        build_actor_critic(tiny_causal_lm(), "copy", peft_config=lora_config())


def test_peft_config_is_checked():
    with pytest.raises(ValueError, match="has PEFT adapters already"):
        build_actor_critic(get_peft_model(tiny_causal_lm(), lora_config()), peft_config=lora_config())
    with pytest.raises(TypeError, match="must be a PeftConfig .* got dict"):
        build_actor_critic(tiny_causal_lm(), peft_config={"r": 4})


def test_trained_biases_are_refused_since_they_would_move_the_reference():
    config = LoraConfig(r=2, target_modules="all-linear", bias="all", fan_in_fan_out=True)
    with pytest.raises(ValueError, match="`bias='all'` .* use `bias='none'`"):
        build_actor_critic(tiny_causal_lm("gpt2"), peft_config=config)
    with pytest.raises(ValueError, match="`bias='all'` .* use `bias='none'`"):
        ActorCritic(get_peft_model(tiny_causal_lm("gpt2"), config))


def test_prompt_learning_is_refused_since_nothing_would_be_learned():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match="PromptTuningConfig adds tokens and no adapter layers"):
        build_actor_critic(tiny_causal_lm(), peft_config=config)


def test_another_kind_of_adapter_works_for_the_actor():
    config = IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = build_actor_critic(tiny_causal_lm(), peft_config=config)
    assert torch.equal(model(*batch()).logps, model(*batch(), role="reference").logps)
    assert len(model.actor_parameters()) == 4


def test_a_critic_must_have_one_label_or_none():
    with pytest.raises(ValueError, match="`critic` has 2 labels"):
        ActorCritic(tiny_causal_lm(), tiny_classifier(arch="llama"))


def test_a_critic_must_know_every_token_of_the_policy():
    with pytest.raises(ValueError, match=f"knows 100 tokens and the policy {VOCAB_SIZE}"):
        ActorCritic(tiny_causal_lm(), tiny_causal_lm(vocab_size=100))
    larger = ActorCritic(tiny_causal_lm(), tiny_causal_lm(vocab_size=200, hidden_size=16))
    assert larger(*batch()).values.shape == (3, 6)


def test_an_encoder_is_no_critic_since_it_knows_what_follows():
    with pytest.raises(ValueError, match="`critic` is a BertModel, which reads later tokens too"):
        ActorCritic(tiny_causal_lm(), tiny_classifier(["reward"]))


def test_quantization_needs_a_name():
    with pytest.raises(ValueError, match="`quantization_config` needs `model` by name"):
        build_actor_critic(tiny_causal_lm(), quantization_config=BitsAndBytesConfig(load_in_8bit=True))


@pytest.mark.parametrize("name", ["critic", "reference"])
def test_a_policy_adapter_may_not_have_the_name_of_one_that_is_added(name):
    policy = get_peft_model(tiny_causal_lm(), lora_config(), adapter_name=name)
    with pytest.raises(ValueError, match=f"adapter is called '{name}'.*load it under another name"):
        ActorCritic(policy)


def test_a_critic_adapter_is_lora():
    with pytest.raises(ValueError, match="`critic='adapter'` needs LoRA, not IA3Config; use 'head'"):
        build_actor_critic(
            tiny_causal_lm(),
            "adapter",
            peft_config=IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        )
