# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The drop-in for TRL's value-head model, against TRL's own class where it is there (trl <= 1.12)."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import PushToHubMixin

from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.integrations import AutoModelForCausalLMWithValueHead

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
try:
    from trl.experimental.ppo import AutoModelForCausalLMWithValueHead as TRLs
except ImportError:
    TRLs = None
with_trls = pytest.mark.skipif(TRLs is None, reason="trl >= 1.13 has no value-head model to compare with")

IDS = torch.tensor([[5, 9, 60, 7, 33], [0, 0, 17, 80, 41]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


def lora() -> LoraConfig:
    """A configuration of its own for every model: PEFT writes the base's name into it."""
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def outputs(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and values of a fixed batch."""
    with torch.no_grad():
        logits, loss, values = model.eval()(input_ids=IDS, attention_mask=MASK)
    assert loss is None and values.shape == IDS.shape and values.dtype == torch.float32
    return logits[MASK.bool()], values[MASK.bool()]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(outputs(one), outputs(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert outputs(one)[1].std() > 0.01, "the values differ from token to token"


def adapted(folder: Path) -> PeftModel:
    """A PEFT model whose adapter does something, on a base saved in `folder`."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(save_tiny(folder, tiny_causal_lm())), lora())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def trls_layout(folder: Path, base: Any, *, prefix: str = "", head: str = "v_head.summary.") -> torch.Tensor:
    """Write a checkpoint by hand, and return the values that its head gives."""
    base.save_pretrained(folder)
    weights = {f"{prefix}{key}": weight for key, weight in load_file(folder / "model.safetensors").items()}
    weight, bias = 0.1 * torch.randn(1, 32), torch.randn(1)
    save_file({**weights, f"{head}weight": weight, f"{head}bias": bias}, folder / "model.safetensors")
    with torch.no_grad():
        states = base.eval()(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[-1]
    return ((states * weight).sum(-1) + bias)[MASK.bool()]


@with_trls
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_reads_what_trl_wrote(arch: str, shards: dict[str, str], tmp_path: Path) -> None:
    theirs = TRLs.from_pretrained(tiny_causal_lm(arch), v_head_init_strategy="normal")
    theirs.save_pretrained(tmp_path, **shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(shards)
    assert_same(AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path), theirs)


@with_trls
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_trl_reads_what_it_wrote(arch: str, tmp_path: Path) -> None:
    ours = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_causal_lm(arch))
    ours.save_pretrained(tmp_path)
    assert_same(TRLs.from_pretrained(str(tmp_path)), ours)


@with_trls
def test_trl_reads_its_adapters(tmp_path: Path) -> None:
    ours = AutoModelForCausalLMWithValueHead(adapted(tmp_path / "base"))
    ours.save_pretrained(tmp_path / "adapter")
    theirs = TRLs.from_pretrained(str(tmp_path / "adapter"))
    assert theirs.is_peft_model
    assert_same(theirs, ours)


@with_trls
def test_trls_pickled_head_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    theirs = TRLs.from_pretrained(adapted(tmp_path / "base"))
    (tmp_path / "adapter").mkdir()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="pytorch_model.bin, a pickle, .* not opened here; convert it once"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter")
    state = torch.load(tmp_path / "adapter" / "pytorch_model.bin", weights_only=True)
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "adapter" / "value_head.safetensors")
    assert_same(AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter"), theirs)


@with_trls
def test_same_interface_and_initialisation_as_trls() -> None:
    def build(kind: Any, **kwargs: Any) -> Any:
        torch.manual_seed(1)
        return kind.from_pretrained(tiny_causal_lm(), **kwargs)

    for kwargs in ({}, {"v_head_init_strategy": "normal", "v_head_initializer_range": 0.5, "summary_dropout_prob": 0}):
        ours, theirs = build(AutoModelForCausalLMWithValueHead, **kwargs), build(TRLs, **kwargs)
        assert_same(ours, theirs)
        assert set(ours.state_dict()) == set(theirs.state_dict())
        assert type(ours.v_head.dropout) is type(theirs.v_head.dropout)
        public = {name for name in vars(theirs) if not name.startswith("_")} - {"current_device", "training"}
        not_ours = {"supports_rm_adapter", "rm_adapter_name", "policy_adapter_name"}  # reward adapters: `ActorCritic`
        assert [name for name in public - not_ours if not hasattr(ours, name)] == []


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("", "v_head.summary."),  # TRL's `save_pretrained`
        ("pretrained_model.", "v_head.summary."),  # the whole module's state, as Trainer and verl save it
        ("", "v_head."),  # a bare linear layer
    ],
)
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_layouts_in_the_wild(arch: str, prefix: str, head: str, tmp_path: Path) -> None:
    base = tiny_causal_lm(arch)
    expected = trls_layout(tmp_path, base, prefix=prefix, head=head)
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    logits, values = outputs(loaded)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        own = base(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()]
    torch.testing.assert_close(logits, own, rtol=0, atol=1e-6)


def test_a_head_without_bias_and_in_a_file_of_its_own(tmp_path: Path) -> None:
    base = tiny_causal_lm()
    base.save_pretrained(tmp_path)
    save_file({"v_head.weight": torch.ones(1, 32)}, tmp_path / "value_head.safetensors")
    head = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path).v_head.summary
    assert head.weight.eq(1).all() and head.bias.eq(0).all()


def test_a_head_of_another_make_is_refused(tmp_path: Path) -> None:
    trls_layout(tmp_path, tiny_causal_lm(), head="v_head.0.")
    with pytest.raises(ValueError, match="value head of another make .v_head.0"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_are_refused_only_when_they_hold_a_head(legacy: bool, tmp_path: Path) -> None:
    base = tiny_causal_lm()
    base.save_pretrained(tmp_path)
    torch.save(base.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    state = {"v_head.summary.weight": torch.ones(1, 32)}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="pytorch_model.bin, a pickle"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)


def test_a_sharded_pickle_is_refused(tmp_path: Path) -> None:
    tiny_causal_lm().save_pretrained(tmp_path)
    index = {"weight_map": {"v_head.summary.weight": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json, a pickle"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    model = AutoModelForCausalLMWithValueHead(tiny_causal_lm())
    model.save_pretrained(tmp_path)
    assert_same(AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, dtype=torch.float32), model)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()], outputs(model)[0])


def cached(folder: Path) -> Path:
    """The folder that a repository on the Hub has in a download cache."""
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    return folder / "snapshots" / "abc"


def test_from_the_hub(tmp_path: Path) -> None:
    """By name, from a cache that holds what a download leaves; there is no network."""
    model = AutoModelForCausalLMWithValueHead(tiny_causal_lm())
    model.save_pretrained(cached(tmp_path / "models--someone--critic"))
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained("someone/critic", cache_dir=str(tmp_path))
    assert_same(loaded, model)
    pickled = cached(tmp_path / "models--someone--older")
    model.pretrained_model.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="value head of someone/older is in pytorch_model.bin"):
        AutoModelForCausalLMWithValueHead.from_pretrained("someone/older", cache_dir=str(tmp_path))


@pytest.mark.parametrize("trainable", [False, True])
def test_an_adapter_saved_and_loaded_again(trainable: bool, tmp_path: Path) -> None:
    model = AutoModelForCausalLMWithValueHead(adapted(tmp_path / "base"))
    assert model.is_peft_model and set(model.state_dict()) == {"v_head.summary.weight", "v_head.summary.bias"}
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter", is_trainable=trainable)
    assert_same(loaded, model)
    assert any(p.requires_grad for p in loaded.pretrained_model.parameters()) == trainable
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(plain(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()], outputs(model)[0])


def test_a_new_adapter() -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_causal_lm(), peft_config=lora())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert model.is_peft_model and {"v_head.summary.weight", "v_head.summary.bias"} < trainable
    assert all("lora_" in name or name.startswith("v_head.") for name in trainable)
    with pytest.raises(ValueError, match="has PEFT adapters already"):
        AutoModelForCausalLMWithValueHead.from_pretrained(model.pretrained_model, peft_config=lora())


def test_gradients_reach_head_and_trunk() -> None:
    model = AutoModelForCausalLMWithValueHead(tiny_causal_lm(), summary_dropout_prob=0.5)
    logits, loss, values = model(input_ids=IDS, attention_mask=MASK, labels=IDS)
    assert loss > 0
    values.sum().backward()
    gradient = model.v_head.summary.weight.grad
    assert gradient is not None and gradient.abs().max() > 0
    assert model.pretrained_model.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
    again = model(input_ids=IDS, attention_mask=MASK)[2]
    assert not torch.equal(values, again), "there is dropout before the head in training"


def test_half_precision_trunk_gives_float32(tmp_path: Path) -> None:
    model = AutoModelForCausalLMWithValueHead(tiny_causal_lm().to(torch.bfloat16))
    logits, values = outputs(model)
    assert logits.dtype == values.dtype == torch.float32


def test_generate_and_the_cache() -> None:
    model = AutoModelForCausalLMWithValueHead(tiny_causal_lm()).eval()
    sampled = model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=3, do_sample=False)
    expected = tiny_causal_lm().generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=3, do_sample=False)
    assert torch.equal(sampled, expected)
    with torch.no_grad():
        *_, whole = model(input_ids=IDS[:1])
        *_, cache = model(input_ids=IDS[:1, :3], use_cache=True, return_past_key_values=True)
        *_, rest = model(input_ids=IDS[:1, 3:], past_key_values=cache)
    torch.testing.assert_close(rest, whole[:, 3:])


def test_what_verl_does_with_it() -> None:
    """It wraps a loaded model, sets methods and private attributes on the wrapper, and reads `v_head` and output 2."""
    model: Any = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_causal_lm())
    model.can_generate = lambda: False
    model.tie_weights = lambda: model.pretrained_model.tie_weights()
    assert model.config.model_type == "llama" and hasattr(model, "v_head")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    arguments = {"use_cache": False, "output_hidden_states": False}
    assert model.train()(input_ids=IDS, attention_mask=MASK, **arguments)[2].requires_grad
    whole = nn.Module.state_dict(model)  # it replaces `state_dict` by this
    assert "v_head.summary.weight" in whole and "pretrained_model.lm_head.weight" in whole
    assert_same(copy.deepcopy(model), model)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = model.nothing
    with pytest.raises(AttributeError, match="no attribute"):  # and no endless recursion before it is built
        _ = AutoModelForCausalLMWithValueHead.__new__(AutoModelForCausalLMWithValueHead).config


def test_inside_another_module() -> None:
    """The state dict of a parent module asks its children with a destination and a prefix."""
    model = AutoModelForCausalLMWithValueHead(tiny_causal_lm())
    state = nn.ModuleDict({"critic": model}).state_dict()
    assert set(state) == {f"critic.{key}" for key in model.state_dict()}
    assert "critic.v_head.summary.weight" in state and "critic.lm_head.weight" in state


def test_pushing_uploads_the_head_too(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: list[set[str]] = []

    def upload(self: Any, folder: str, *args: Any, **kwargs: Any) -> None:
        uploaded.append(set(load_file(f"{folder}/model.safetensors")))

    class Hub:
        def create_repo(self, name: str, **kwargs: Any) -> Any:
            self.repo_id = name
            return self

        def save(self, path: str) -> None:
            """As a model card."""

    monkeypatch.setattr(transformers.utils.hub, "hf_api", Hub, raising=False)
    monkeypatch.setattr(transformers.utils.hub, "create_repo", Hub().create_repo, raising=False)
    monkeypatch.setattr(transformers.utils.hub, "create_and_tag_model_card", lambda *args, **kwargs: Hub())
    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    model = AutoModelForCausalLMWithValueHead(tiny_causal_lm())
    model.push_to_hub("someone/critic")
    assert uploaded == [set(model.state_dict())]


def test_errors() -> None:
    with pytest.raises(ValueError, match="`v_head_init_strategy` is 'uniform'; use 'normal'"):
        AutoModelForCausalLMWithValueHead(tiny_causal_lm(), v_head_init_strategy="uniform")
    with pytest.raises(ValueError, match="'dtype'.* given by name; this one is loaded"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_causal_lm(), dtype="auto")
    with pytest.raises(OSError, match="/no/such/folder"):
        AutoModelForCausalLMWithValueHead.from_pretrained("/no/such/folder")
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="does not go with prompt learning; use LoRA"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_causal_lm(), peft_config=prompts)
