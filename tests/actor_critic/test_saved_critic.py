# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A critic of an earlier run as the start of a later one: of every kind, and on every base that has one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.actor_critic.makes import batch, learn, lora_config
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier
from trl_ext.actor_critic import ActorCritic, build_actor_critic

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}


def quantized(base: str, critic: str) -> ActorCritic:
    return build_actor_critic(base, critic, peft_config=lora_config(), quantization_config=BitsAndBytesConfig(**NF4))


def in_bf16(base: str, critic: str) -> ActorCritic:
    return build_actor_critic(base, critic, peft_config=lora_config(), init_kwargs={"dtype": "bfloat16"})


def two_critics(base: str, critic: str) -> ActorCritic:
    num_critics = 2 if critic == "adapter" else 1  # a folder tells itself
    return build_actor_critic(base, critic, peft_config=lora_config(), num_critics=num_critics)


# How a run builds its models: from the folder of its base and its `critic`.
KINDS = {
    "head": ("head", lambda base, critic: ActorCritic(base, critic)),
    "head with LoRA": ("head", lambda base, critic: build_actor_critic(base, critic, peft_config=lora_config())),
    "adapter": ("adapter", lambda base, critic: build_actor_critic(base, critic, peft_config=lora_config())),
    "adapter on bf16": ("adapter", in_bf16),
    "adapter on NF4": ("adapter", quantized),
    "two adapters": ("adapter", two_critics),
    "copy": ("copy", lambda base, critic: ActorCritic(base, critic)),
    "reward model": ("REWARD", lambda base, critic: ActorCritic(base, critic)),
}


@pytest.fixture
def base(tmp_path: Path) -> str:
    save_tiny(tmp_path / "REWARD", tiny_classifier(["reward"], arch="llama", layers=2))
    return save_tiny(tmp_path / "base", tiny_causal_lm())


@pytest.mark.parametrize("name", ["run", "run/critic"], ids=["the run's folder", "its subfolder"])
@pytest.mark.parametrize(("critic", "make"), KINDS.values(), ids=KINDS)
def test_a_later_run_starts_with_the_values_of_the_earlier_one_and_learns_on(critic, make, name, base, tmp_path):
    """The policy starts anew from its base: only what the critic owns comes along."""
    earlier = make(base, str(tmp_path / critic) if critic == "REWARD" else critic)
    with torch.no_grad():
        for _, p in earlier.critic_parameters():
            p.add_(torch.randn_like(p) * 0.1)
    expected = earlier.eval()(*batch())
    earlier.save_pretrained(tmp_path / "run")

    later = make(base, str(tmp_path / name)).eval()
    assert later.critic_kind == earlier.critic_kind
    out = later(*batch())
    assert torch.equal(out.values, expected.values) and out.values.abs().max() > 0.05
    own = {name: p.clone() for name, p in later.critic_parameters()}
    assert own.keys() == dict(earlier.critic_parameters()).keys()
    assert all(p.dtype == torch.float32 for p in own.values())
    learn(later, batch())
    assert not any(torch.equal(p, own[name]) for name, p in later.critic_parameters())


def test_a_critic_saved_without_the_sizes_of_its_base_still_loads(base, tmp_path):
    ActorCritic(base).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "critic" / "critic_config.json").write_text('{"critic": "head"}')
    assert ActorCritic(base, str(tmp_path / "run")).critic_kind == "head"


def test_the_rank_of_the_adapter_is_that_of_the_folder(base, tmp_path):
    build_actor_critic(base, "adapter", peft_config=lora_config(), critic_lora_rank=2).save_pretrained(tmp_path / "run")
    later = build_actor_critic(base, str(tmp_path / "run"), peft_config=lora_config())
    shapes = {name: p.shape for name, p in later.critic_parameters() if "lora_A" in name}
    assert {shape[0] for shape in shapes.values()} == {2}
    with pytest.raises(ValueError, match="`critic_lora_rank` 4 needs `critic='adapter'`"):
        build_actor_critic(base, str(tmp_path / "run"), peft_config=lora_config(), critic_lora_rank=4)


# ---- what cannot work ----


def break_record(folder: Path) -> None:
    (folder / "critic_config.json").write_text("{")


def break_head(folder: Path) -> None:
    (folder / "value_head.safetensors").write_bytes(b"nothing")


def other_kind(folder: Path) -> None:
    (folder / "critic_config.json").write_text(json.dumps({"critic": "oracle"}))


REFUSED: dict[str, tuple[str, Any, str]] = {
    "narrower": ("head", {"hidden_size": 16}, "belongs to another base: the width of hidden states is 16 there and 32"),
    "deeper": ("head", {"layers": 3}, "belongs to another base: `num_hidden_layers` is 3 there and 2 in the policy"),
    "another type": ("adapter", {"arch": "qwen2"}, "belongs to another base: `model_type` is qwen2 there and llama"),
    "no head": ("head", Path("value_head.safetensors"), "lacks the file `value_head.safetensors` of its critic"),
    "no adapter": ("adapter", Path("adapter_model.safetensors"), "lacks the file `adapter_model.safetensors`"),
    "no model": ("copy", Path("config.json"), "lacks the file `config.json` of its critic"),
    "no JSON": ("head", break_record, "has a `critic_config.json` that cannot be read"),
    "no safetensors": ("head", break_head, "has a `value_head.safetensors` that cannot be read"),
    "a kind of the future": ("head", other_kind, "has a critic of the unknown kind 'oracle'; update trl_ext"),
}


@pytest.mark.parametrize(("critic", "fault", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(critic, fault, message, base, tmp_path, monkeypatch):
    sizes = fault if isinstance(fault, dict) else {}
    earlier = save_tiny(tmp_path / "earlier", tiny_causal_lm(**sizes))
    options = {"peft_config": lora_config()} if critic == "adapter" else {}
    build_actor_critic(earlier, critic, **options).save_pretrained(tmp_path / "run")
    if isinstance(fault, Path):
        (tmp_path / "run" / "critic" / fault).unlink()
    elif callable(fault):
        fault(tmp_path / "run" / "critic")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", pytest.fail)
    options = {"peft_config": lora_config()} if critic == "adapter" else {}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        build_actor_critic(base, str(tmp_path / "run"), **options)
    sentence = str(caught.value)
    assert sentence.startswith(f"`critic` '{tmp_path / 'run'}' {message}") and "\n" not in sentence


def test_an_adapter_critic_needs_a_policy_with_an_adapter(base, tmp_path):
    build_actor_critic(base, "adapter", peft_config=lora_config()).save_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="is a LoRA adapter beside the policy's own: it needs `peft_config`"):
        ActorCritic(base, str(tmp_path / "run"))


def test_an_adapter_of_a_wider_base_is_refused_when_nothing_was_recorded(base, tmp_path):
    earlier = save_tiny(tmp_path / "earlier", tiny_causal_lm(layers=3))
    build_actor_critic(earlier, "adapter", peft_config=lora_config()).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "critic" / "critic_config.json").write_text('{"critic": "adapter"}')
    with pytest.raises(ValueError, match="belongs to another base and does not fit the policy's"):
        build_actor_critic(base, str(tmp_path / "run"), peft_config=lora_config())


def test_a_base_of_another_name_is_doubtful_and_the_runs_own_policy_is_not(base, tmp_path, recwarn):
    ActorCritic(base).save_pretrained(tmp_path / "run")
    ActorCritic(base, str(tmp_path / "run"))
    ActorCritic(str(tmp_path / "run"), str(tmp_path / "run"))
    assert not [w for w in recwarn if "was trained on" in str(w.message)]
    other = save_tiny(tmp_path / "other", tiny_causal_lm(seed=1))
    with pytest.warns(UserWarning, match="was trained on '.*base' and the policy is '.*other'"):
        ActorCritic(other, str(tmp_path / "run"))
