# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What `save_pretrained` leaves behind, and who can load it."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.actor_critic.makes import ROWS, batch, learn, lora_config, reference, scramble
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.actor_critic.names import recorded_base


def sft_adapter(model):
    policy = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"), adapter_name="sft")
    scramble(policy)
    return policy


# Each takes a causal LM.
MAKES = {
    "head": lambda lm: ActorCritic(lm),
    "tied": lambda lm: ActorCritic(tiny_causal_lm("gpt2")),
    "copy": lambda lm: ActorCritic(lm, "copy"),
    "reward model": lambda lm: ActorCritic(lm, tiny_classifier(["reward"], arch="llama")),
    "lora": lambda lm: build_actor_critic(lm, peft_config=lora_config()),
    "two adapters": lambda lm: build_actor_critic(lm, "adapter", peft_config=lora_config()),
    "named adapter": lambda lm: ActorCritic(sft_adapter(lm), "adapter"),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_round_trip(make, tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm())
    model, folder = make(AutoModelForCausalLM.from_pretrained(base)), tmp_path / "saved"
    learn(model, batch())
    model.save_pretrained(folder)
    trained = model.eval()(*batch())

    fresh = make(AutoModelForCausalLM.from_pretrained(base)).eval()
    start = reference(fresh, batch())
    assert not torch.equal(fresh(*batch()).logps, trained.logps)
    fresh.load_pretrained(folder)
    loaded = fresh(*batch())
    assert torch.equal(loaded.logps, trained.logps) and torch.equal(loaded.values, trained.values)
    assert torch.equal(reference(fresh, batch()), start), "loading a policy must not move the reference"


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_root_is_what_plain_transformers_or_peft_loads(make, tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm())
    model, folder = make(AutoModelForCausalLM.from_pretrained(base)), tmp_path / "saved"
    learn(model, batch())
    model.save_pretrained(folder)
    auto = AutoPeftModelForCausalLM if (folder / "adapter_config.json").exists() else AutoModelForCausalLM
    loaded = auto.from_pretrained(folder).eval()
    for i, (prompt, completion) in enumerate(ROWS):
        with torch.no_grad():
            log_probs = loaded(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        expected = log_probs[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]
        assert torch.allclose(model.eval()(*batch()).logps[i, : len(completion)], expected, atol=1e-5)


@pytest.mark.parametrize("name", MAKES)
def test_only_safetensors_are_written(name, tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm())
    MAKES[name](AutoModelForCausalLM.from_pretrained(base)).save_pretrained(tmp_path / "saved")
    files = {str(p.relative_to(tmp_path / "saved")) for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert {name.rsplit(".", 1)[1] for name in files} <= {"safetensors", "json", "md"}
    subfolders = {"critic", "reference"} if name == "named adapter" else {"critic"}
    assert {name.split("/")[0] for name in files if "/" in name} == subfolders
    assert not {name for name in files if "/" in name and name.endswith(".md")}, "cards with a path of the machine"
    assert "critic/value_head.safetensors" in files
    assert files & {"model.safetensors", "adapter_model.safetensors"}


@pytest.mark.parametrize("name", ["copy", "named adapter"])
def test_weights_are_as_readable_as_the_files_beside_them(name, tmp_path):
    MAKES[name](tiny_causal_lm()).save_pretrained(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (
        len({path.stat().st_mode for path in files}) == 1 and sum(path.suffix == ".safetensors" for path in files) > 1
    )


def test_who_may_read_earlier_files_in_a_folder_is_left_as_it_is(tmp_path):
    """A run's folder has checkpoints, to which their owner may have given other rights."""
    private = tmp_path / "checkpoint-2" / "model.safetensors"
    private.parent.mkdir()
    private.touch(0o600)
    MAKES["named adapter"](tiny_causal_lm()).save_pretrained(tmp_path)
    assert private.stat().st_mode & 0o777 == 0o600


def test_saving_does_not_disturb_training(tmp_path):
    model = build_actor_critic(tiny_causal_lm(), "adapter", peft_config=lora_config())
    scramble(model)
    before = model(*batch())
    flags = [p.requires_grad for p in model.parameters()]
    model.save_pretrained(tmp_path)
    after = model(*batch())
    assert torch.equal(before.logps, after.logps) and torch.equal(before.values, after.values)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_loading_another_kind_of_critic_names_both(tmp_path):
    ActorCritic(tiny_causal_lm(), "copy").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "critic" / "critic_config.json").read_text())["critic"] == "model"
    with pytest.raises(ValueError, match="holds a critic of kind 'model', this run has 'head'"):
        ActorCritic(tiny_causal_lm()).load_pretrained(tmp_path)


@pytest.mark.parametrize("missing", ["model.safetensors", "critic/value_head.safetensors", "critic/critic_config.json"])
def test_a_missing_part_is_an_error(missing, tmp_path):
    model = ActorCritic(tiny_causal_lm())
    model.save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(OSError):
        model.load_pretrained(tmp_path)


def test_what_the_trainer_asks_of_a_model(tmp_path):
    model = build_actor_critic(save_tiny(tmp_path, tiny_causal_lm()), peft_config=lora_config())
    assert model.config.model_type == "llama" and model.device.type == "cpu"
    assert model.generation_config is model.causal_lm.generation_config
    model.add_model_tags(["ppo"])
    assert "ppo" in model.causal_lm.model_tags


@pytest.mark.parametrize("make", [MAKES["head"], MAKES["lora"]], ids=["whole", "adapter"])
def test_the_base_is_recorded_so_that_it_is_found_from_another_folder(make, tmp_path, monkeypatch):
    save_tiny(tmp_path / "base", tiny_causal_lm())
    monkeypatch.chdir(tmp_path)
    make(AutoModelForCausalLM.from_pretrained("base")).save_pretrained(tmp_path / "saved")
    assert recorded_base(tmp_path / "saved") == str(tmp_path / "base")
    (tmp_path / "moved").mkdir()
    for name in ("base", "saved"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    monkeypatch.chdir("/")
    assert recorded_base(tmp_path / "moved" / "saved") == str(tmp_path / "moved" / "base")


def test_a_model_without_a_name_leaves_no_record_of_its_base(tmp_path):
    ActorCritic(tiny_causal_lm()).save_pretrained(tmp_path / "saved")
    assert recorded_base(tmp_path / "saved") is None
    (tmp_path / "saved" / "base_model.json").write_text("[]")
    assert recorded_base(tmp_path / "saved") is None
