# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The critic's own adapter: on layers of its own, and started from a reward model's."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from safetensors.torch import load_file, save_file

from tests.actor_critic.makes import ROWS, batch, learn, lora_config, reference, scramble
from tests.actor_critic.test_reward_ensemble import save_adapters
from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.actor_critic import ActorCritic, build_actor_critic

MLP = {"gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("base"), tiny_causal_lm())


@pytest.fixture(scope="module")
def reward(base, tmp_path_factory) -> str:
    return save_adapters(tmp_path_factory.mktemp("reward"), base, 1, r=2)[0]


def layers(model: ActorCritic) -> set[str]:
    return {name.split(".lora_")[0].split(".")[-1] for name, _ in model.critic_parameters() if ".lora_" in name}


# ---- layers of its own ----


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["gate_proj", "up_proj", "down_proj"], MLP),
        (["mlp.up_proj"], {"up_proj"}),
        ([r".*\.mlp\..*"], MLP),
        ([r".*\.1\.self_attn\.[qv]_proj", "up_proj"], {"q_proj", "v_proj", "up_proj"}),
        (["all-linear"], MLP | {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_the_critic_has_layers_of_its_own(names, expected):
    """Also where the policy has no adapter in them: then each computes with its own alone."""
    for targets in ("all-linear", ["q_proj", "up_proj"]):
        config = LoraConfig(r=4, target_modules=targets)
        model = build_actor_critic(tiny_causal_lm(), "adapter", peft_config=config, critic_target_modules=names)
        assert layers(model) == expected
        before = model.eval()(*batch())
        with torch.no_grad():
            for _, p in model.critic_parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
        after = model(*batch())
        assert torch.equal(after.logps, before.logps) and torch.equal(after.logps, reference(model, batch()))
        assert not torch.allclose(after.values[0, 0], after.values[1, 0])
        learn(model, batch())
        assert all(p.grad is not None and p.grad.any() for _, p in model.critic_parameters())


def test_a_gpt2_has_layers_of_another_class():
    model = build_actor_critic(
        tiny_causal_lm("gpt2"), "adapter", peft_config=LoraConfig(r=2), critic_target_modules=["c_fc", "mlp.c_proj"]
    )
    assert layers(model) == {"c_fc", "c_proj"} and not any("attn" in name for name, _ in model.critic_parameters())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["up_proj", "fc1"],
            "'fc1' matches no linear layer of this LlamaForCausalLM; its layers are down_proj, gate_p",
        ),
        ([r".*\.experts\..*"], r"'\.\*\\\\\.experts\\\\\.\.\*' matches no linear layer"),
        (["lm_head"], "'lm_head' matches no linear layer"),
        (["("], r"'\(' is no regular expression"),
    ],
)
def test_layers_that_do_not_exist_are_refused_with_those_that_do(names, message):
    with pytest.raises(ValueError, match=f"`critic_target_modules` {message}"):
        build_actor_critic(tiny_causal_lm(), "adapter", peft_config=lora_config(), critic_target_modules=names)


@pytest.mark.parametrize("left_out", [None, ["o_proj"], r".*\.o_proj"])
@pytest.mark.parametrize("targets", [["q_proj", "o_proj", "lm_head"], r".*\.q_proj|lm_head"])
def test_the_critics_adapter_is_not_on_the_head(targets, left_out, tmp_path):
    """No value goes through it: the adapter would never learn, and DDP would wait for its gradients."""
    config = LoraConfig(r=4, target_modules=targets, exclude_modules=left_out)
    model = build_actor_critic(tiny_causal_lm(), "adapter", peft_config=config)
    assert layers(model) == ({"q_proj", "o_proj"} if "o_proj" in targets and left_out is None else {"q_proj"})
    assert any("lm_head.lora_" in name for name, _ in model.actor_parameters())
    learn(model, batch())
    assert all(p.grad is not None for _, p in model.critic_parameters())


def test_a_policy_with_an_adapter_on_the_head_alone_has_no_layer_for_the_critics():
    with pytest.raises(ValueError, match="which is on lm_head alone, and values do not go through it; name others in"):
        build_actor_critic(tiny_causal_lm(), "adapter", peft_config=LoraConfig(r=4, target_modules=["lm_head"]))


@pytest.mark.parametrize(("has", "given"), [("head", "copy"), ("head", "adapter"), ("adapter", "copy")])
def test_another_critic_than_that_of_an_actor_critic_is_refused(has, given):
    model = build_actor_critic(tiny_causal_lm(), has, peft_config=lora_config())
    with pytest.raises(ValueError, match=f"`critic` is '{given}', and `model` is an ActorCritic with a critic of kind"):
        build_actor_critic(model, given)
    assert build_actor_critic(model) is build_actor_critic(model, has) is model


def test_layers_for_a_critic_without_an_adapter_are_refused():
    with pytest.raises(ValueError, match=r"`critic_target_modules` \['up_proj'\] needs `critic='adapter'`"):
        build_actor_critic(tiny_causal_lm(), peft_config=lora_config(), critic_target_modules=["up_proj"])


def test_a_later_run_has_the_layers_of_the_earlier_one(base, tmp_path):
    options = {"peft_config": lora_config(), "critic_target_modules": ["up_proj"]}
    model = build_actor_critic(base, "adapter", **options)
    scramble(model)
    model.save_pretrained(tmp_path)
    later = build_actor_critic(base, str(tmp_path), peft_config=lora_config())
    assert layers(later) == {"up_proj"}
    assert torch.equal(later.eval()(*batch()).values[:, 0], model.eval()(*batch()).values[:, 0])


# ---- from a reward model ----


def test_the_first_values_are_the_reward_models_scores_of_every_beginning(base, reward):
    model = build_actor_critic(base, reward, peft_config=lora_config()).eval()
    assert model.critic_kind == "adapter"
    judge = AutoPeftModelForSequenceClassification.from_pretrained(reward, num_labels=1).eval()
    judge.config.pad_token_id = None
    with torch.no_grad():
        values = model(*batch()).values
        for i, (prompt, completion) in enumerate(ROWS):
            for t in range(len(completion) + 1):
                score = judge(input_ids=torch.tensor([prompt + completion[:t]])).logits.item()
                assert values[i, t].item() == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_critic_from_a_reward_model_learns_and_leaves_reward_and_reference_alone(dtype, base, reward, tmp_path):
    """The same folder may be the reward, too: that adapter stays frozen."""
    options = {"peft_config": lora_config(), "reward_adapters": [reward], "init_kwargs": {"dtype": dtype}}
    model = build_actor_critic(base, reward, **options)
    start, (ids, mask, _) = reference(model, batch()), batch()
    scores = model.reward_models[0](ids, mask).logits
    own = {name: p.clone() for name, p in model.critic_parameters()}
    assert all(p.dtype == torch.float32 for p in own.values())
    learn(model, batch())
    assert not any(torch.equal(p, own[name]) for name, p in model.critic_parameters())
    assert torch.equal(model.reward_models[0](ids, mask).logits, scores)
    assert torch.equal(reference(model, batch()), start)
    model.save_pretrained(tmp_path / "run")
    later = build_actor_critic(base, str(tmp_path / "run"), **options)
    assert torch.equal(later.eval()(*batch()).values[:, 0], model.eval()(*batch()).values[:, 0])


def test_a_reward_adapter_that_does_not_fit_is_refused_before_anything_is_loaded(base, reward, tmp_path, monkeypatch):
    other = save_tiny(tmp_path / "other", tiny_causal_lm(layers=3))
    with pytest.raises(ValueError, match="is a LoRA adapter beside the policy's own: it needs `peft_config`"):
        ActorCritic(base, reward)
    with pytest.raises(ValueError, match="belongs to another base: `num_hidden_layers` is 2 there and 3 in the policy"):
        build_actor_critic(other, reward, peft_config=lora_config())
    headless = Path(save_adapters(tmp_path, base, 1)[0])
    (headless / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="has a `adapter_model.safetensors` that cannot be read"):
        build_actor_critic(base, str(headless), peft_config=lora_config())


# ---- two of them ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_value_is_the_mean_of_two_critics(dtype, base, tmp_path):
    """Each of them, taken out of the folder, is a single critic with the same values."""
    options = {"peft_config": lora_config(), "init_kwargs": {"dtype": dtype}}
    model = build_actor_critic(base, "adapter", num_critics=2, **options)
    assert not model(*batch()).value_gap.any()
    scramble(model)
    out = model.eval()(*batch())
    model.save_pretrained(tmp_path / "both")
    heads = load_file(tmp_path / "both" / "critic" / "value_head.safetensors")
    values = []
    for i, place in enumerate(("critic", "critic/critic_2")):
        single = tmp_path / f"single{i}"
        shutil.copytree(tmp_path / "both" / place, single)
        save_file({name: w[i : i + 1].clone() for name, w in heads.items()}, single / "value_head.safetensors")
        (single / "critic_config.json").write_text('{"critic": "adapter"}')
        values.append(build_actor_critic(base, str(single), **options).eval()(*batch()).values)
    torch.testing.assert_close(out.values, (values[0] + values[1]) / 2)
    torch.testing.assert_close(out.value_gap, (values[1] - values[0]) / 2)
    states = model.critic_states(*batch())
    assert states.shape == (3, 6, 2, 32) and torch.equal(model.values(states), out.values)
    own = model.values(states, torch.tensor([1, 0, 1]))
    torch.testing.assert_close(own, torch.stack([values[1][0], values[0][1], values[1][2]]))

    later = build_actor_critic(base, str(tmp_path / "both"), **options).eval()
    assert torch.equal(later(*batch()).value_gap, out.value_gap)
    names = {name for name, _ in later.critic_parameters()}
    assert names == {name for name, _ in model.critic_parameters()} and any(".critic_2." in name for name in names)
    (tmp_path / "both" / "critic" / "critic_2" / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks the file `critic_2/adapter_model.safetensors` of its critic"):
        build_actor_critic(base, str(tmp_path / "both"), **options)


def test_two_critics_leave_the_policy_alone_and_work_with_checkpointing():
    model = build_actor_critic(tiny_causal_lm(), "adapter", peft_config=lora_config(), num_critics=2)
    scramble(model)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        out = model.train()(*batch())
        (out.values.square().sum() + (out.value_gap + 1).square().sum() + out.logps.sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    with pytest.raises(ValueError, match="`num_critics` 2 needs `critic='adapter'`"):
        build_actor_critic(tiny_causal_lm(), num_critics=2)
