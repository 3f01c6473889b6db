# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Several roles on one quantized base, for real: bitsandbytes runs on the CPU."""

import importlib.util
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.actor_critic.makes import batch, learn, lora_config, scramble
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext.actor_critic import ActorCritic, build_actor_critic, loading
from trl_ext.actor_critic.merge import merge
from trl_ext.rewards.scoring import SequenceScorer

POLICY_WEIGHTS = torch.linspace(-1, 1, 15).view(3, 5)
VALUE_WEIGHTS = torch.linspace(1, -2, 18).view(3, 6)


def nf4(dtype: torch.dtype = torch.float32) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A folder with a tiny model and its tokenizer. Its hidden size is two blocks of 64."""
    folder = tmp_path_factory.mktemp("base")
    tiny_causal_lm(hidden_size=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def without_cpu_kernel(model: nn.Module) -> nn.Module:
    """Keep bitsandbytes from its kernel for evaluation on CPUs, which rounds to bfloat16."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that must not move, 4-bit weights included."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


def gradients(model: ActorCritic) -> dict[str, Tensor]:
    out = model.train()(*batch())
    ((out.logps * POLICY_WEIGHTS).sum() + (out.values * VALUE_WEIGHTS).sum()).backward()
    taken = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def gradients_of_two_models(model: ActorCritic, base: str) -> dict[str, Tensor]:
    """The same from two separately loaded 4-bit models, through their own `forward`, without checkpointing."""
    ids, attention_mask, mask = batch()
    weights = dict(model.named_parameters())
    taken: dict[str, Tensor] = {}
    for role in ("default", "critic"):
        alone = get_peft_model(AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4()), lora_config())
        for module in without_cpu_kernel(alone).modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        names = {name: f"policy.{name.replace('.default.', f'.{role}.')}" for name, _ in alone.named_parameters()}
        trainable = {name: p for name, p in alone.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, p in trainable.items():
                p.copy_(weights[names[name]])
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        out = alone.train()(
            input_ids=ids, attention_mask=attention_mask, position_ids=position_ids, output_hidden_states=True
        )
        if role == "default":
            logps = out.logits[:, -6:-1].log_softmax(-1).gather(-1, ids[:, -5:, None])[..., 0]
            loss = (logps * POLICY_WEIGHTS * mask).sum()
        else:
            head = nn.Linear(128, 1)
            head.load_state_dict(model.value_head.state_dict())
            loss = (head(out.hidden_states[-1][:, -6:])[..., 0] * VALUE_WEIGHTS).sum()
        loss.backward()
        taken |= {names[name]: p.grad for name, p in trainable.items() if p.grad is not None}
    return taken | {f"value_head.{name}": p.grad for name, p in head.named_parameters() if p.grad is not None}


def relative_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm()) for name in a)


def test_gradients_on_one_4_bit_base_equal_those_of_two_4_bit_models(base, monkeypatch):
    model = build_actor_critic(base, "adapter", peft_config=lora_config(), quantization_config=nf4())
    scramble(model)
    model.gradient_checkpointing_enable()
    expected = gradients_of_two_models(model, base)
    assert relative_difference(gradients(model), expected) < 1e-3
    with monkeypatch.context() as patch:  # the naive way: recompute under whatever is active then
        patch.setattr(type(model._switch), "checkpoint_contexts", lambda self: (nullcontext(), nullcontext()))
        naive = build_actor_critic(base, "adapter", peft_config=lora_config(), quantization_config=nf4())
        scramble(naive)
        naive.gradient_checkpointing_enable()
        assert relative_difference(gradients(naive), expected) > 1e-2


def test_evaluating_does_not_change_the_gradients_of_4_bit_layers(base, monkeypatch):
    """In eval mode bitsandbytes repacks them for a CPU kernel that has no backward pass, and leaves them so."""
    model = build_actor_critic(base, "adapter", peft_config=lora_config(), quantization_config=nf4())
    scramble(model)
    before = gradients(model)
    with torch.no_grad():
        model.eval()(*batch())
    assert relative_difference(gradients(model), before) == 0.0

    packed = AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4())
    layer = packed.model.layers[0].mlp.down_proj
    if not layer.support_avx512bf16_for_cpu:
        return  # this CPU has no such kernel
    with torch.no_grad():
        packed.eval()(batch()[0])
    assert layer.weight.quant_state.packing_format_for_cpu, "repacked by the evaluation"
    with monkeypatch.context() as patch:
        patch.setattr(loading, "keep_differentiable", lambda model: None)
        broken = build_actor_critic(packed, "adapter", peft_config=lora_config())
        scramble(broken)
        assert relative_difference(gradients(broken), before) > 0.5, "what lies below gets no gradient"
    policy = loading.load_policy(broken.policy.unload())
    assert not layer.weight.quant_state.packing_format_for_cpu
    restored = build_actor_critic(policy, "adapter", peft_config=lora_config())
    scramble(restored)
    assert relative_difference(gradients(restored), before) < 0.3, "the scales have been rounded to bfloat16"


def test_a_quantized_critic_is_refused(base):
    critic = AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4())
    with pytest.raises(ValueError, match="`critic` is quantized and cannot be trained"):
        ActorCritic(tiny_causal_lm(hidden_size=128), critic)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_quantized_reward_model_stays_where_it_is(base, by_name, tmp_path):
    """Transformers refuses to move or cast one; the rest of a run may well ask for a device and a dtype."""
    config = AutoConfig.from_pretrained(base, num_labels=1, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "plain")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain", quantization_config=nf4())
    given = whole
    if by_name:
        whole.save_pretrained(tmp_path / "quantized")
        given = str(tmp_path / "quantized")
    scorer = SequenceScorer(given, tokenizer=base, device="cpu", dtype=None if by_name else "bfloat16")
    assert scorer.logits(["a cat", "the dog sat"]).shape == (2, 1)
    layer = scorer.model.model.layers[0].mlp.down_proj
    assert isinstance(layer, bnb.nn.Linear4bit) and layer.weight.dtype == torch.uint8


@pytest.mark.parametrize("size", [20, 33, 48])
def test_layers_of_any_size_can_be_quantized_on_a_cpu(size, tmp_path):
    """Bitsandbytes' kernel takes output sizes in multiples of 32 only; it is not used."""
    tiny_causal_lm("gpt2" if size % 8 else "llama", hidden_size=size - size % 4).save_pretrained(tmp_path)
    model = build_actor_critic(str(tmp_path), peft_config=lora_config(), quantization_config=nf4())
    with torch.no_grad():
        model.eval()(*batch())
    assert all(g.isfinite().all() for g in gradients(model).values())


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_from_an_sft_adapter_the_kl_is_zero_and_nothing_frozen_moves(base, critic, reward_adapter, tmp_path):
    sft = get_peft_model(AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4()), lora_config())
    scramble(sft)
    sft.save_pretrained(tmp_path / "sft")
    loaded = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "sft", quantization_config=nf4(), is_trainable=True
    ).eval()
    without_cpu_kernel(loaded)
    ids, attention_mask, mask = batch()
    with torch.no_grad():
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        logits = loaded(input_ids=ids, attention_mask=attention_mask, position_ids=position_ids).logits
        theirs = logits[:, -6:-1].log_softmax(-1).gather(-1, ids[:, -5:, None])[..., 0] * mask

    model = ActorCritic(loaded, critic, reward_adapters=[reward_adapter])
    with torch.no_grad():
        ours, reference = model.eval()(*batch()).logps, model(*batch(), role="reference").logps
    torch.testing.assert_close(reference, theirs, rtol=0, atol=1e-5)
    assert torch.equal(ours, reference)
    rewards = model.reward_models[0](ids, attention_mask).logits
    before = frozen(model)
    learn(model, batch())
    assert not torch.equal(model(*batch()).logps, reference), "it learned something"
    assert torch.equal(model.eval()(*batch(), role="reference").logps, reference)
    assert torch.equal(model.reward_models[0](ids, attention_mask).logits, rewards)
    after = frozen(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert any("reward0" in name for name in before) and any(".reference." in name for name in before)
    assert any(p.dtype == torch.uint8 for p in before.values())


@pytest.fixture(scope="module")
def reward_adapter(base, tmp_path_factory) -> str:
    """A LoRA reward model as PEFT saves one."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    model = get_peft_model(classifier, config)
    scramble(model)
    model.save_pretrained(folder)
    return str(folder)


def test_three_adapters_with_rank_16_cost_less_than_a_third_of_a_4_bit_base(tmp_path):
    """A layer of Llama 3.2 1B, whose narrow layers make adapters weigh more than in larger models."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=nf4(torch.bfloat16))
    alone = sum(p.numel() * p.element_size() for p in base.parameters())
    reward_config = LoraConfig(r=16, target_modules="all-linear", task_type="SEQ_CLS")
    get_peft_model(_classifier(config), reward_config).save_pretrained(tmp_path / "reward")
    model = build_actor_critic(
        str(tmp_path / "base"),
        "adapter",
        peft_config=LoraConfig(r=16),
        quantization_config=nf4(torch.bfloat16),
        reward_adapters=[tmp_path / "reward"],
    )
    assert {"default", "critic", "reward0"} <= model.policy.peft_config.keys()
    assert alone < sum(p.numel() * p.element_size() for p in model.parameters()) <= 4 / 3 * alone


def _classifier(config: LlamaConfig):
    from transformers import LlamaForSequenceClassification

    config.num_labels = 1
    return LlamaForSequenceClassification(config).to(torch.bfloat16)


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_the_saved_run_loads_with_plain_peft_and_gives_the_same_logits(base, critic, tmp_path):
    model = build_actor_critic(base, critic, peft_config=lora_config(), quantization_config=nf4())
    scramble(model)
    model.save_pretrained(tmp_path)
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path, quantization_config=nf4()).eval()
    without_cpu_kernel(plain)
    ids, attention_mask, _ = batch()
    with torch.no_grad():
        ours = model.eval().causal_lm(input_ids=ids, attention_mask=attention_mask).logits
        theirs = plain(input_ids=ids, attention_mask=attention_mask).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md"}


def test_merging_writes_what_the_policy_said(base, tmp_path):
    model = build_actor_critic(base, "adapter", peft_config=lora_config(), quantization_config=nf4())
    scramble(model, scale=0.1)
    model.save_pretrained(tmp_path / "run")
    merge(tmp_path / "run", tmp_path / "merged")
    merge(tmp_path / "run", tmp_path / "original", original_base=True, dtype=torch.bfloat16)
    ids, attention_mask, _ = batch()
    with torch.no_grad():
        ours = model.eval().causal_lm(input_ids=ids, attention_mask=attention_mask).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        original = AutoModelForCausalLM.from_pretrained(tmp_path / "original")
        theirs = merged(input_ids=ids, attention_mask=attention_mask).logits
        other = original(input_ids=ids, attention_mask=attention_mask).logits
    real = attention_mask.bool()
    torch.testing.assert_close(theirs[real], ours[real], rtol=0, atol=1e-4)
    assert merged.dtype == torch.float32 and original.dtype == torch.bfloat16
    assert (other.float()[real] - ours[real]).abs().max() > 1e-2, "the base before quantization says something else"
    assert not list((tmp_path / "merged").glob("adapter*")) and list((tmp_path / "merged").glob("tokenizer*"))
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()


def test_merging_refuses_what_it_cannot_do(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="is a whole model already, with nothing to merge"):
        merge(base, tmp_path / "out")
    build_actor_critic(base, peft_config=lora_config()).save_pretrained(tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ValueError, match="is not empty; choose another"):
        merge(tmp_path / "run", tmp_path / "out")


def test_8_bit_learns_and_starts_at_its_reference(base):
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    model = build_actor_critic(base, "adapter", peft_config=lora_config(), quantization_config=quantization)
    assert any(isinstance(module, bnb.nn.Linear8bitLt) for module in model.modules())
    assert torch.equal(model.eval()(*batch()).logps, model(*batch(), role="reference").logps)
    before = frozen(model)
    learn(model, batch())
    assert not torch.equal(model(*batch()).logps, model(*batch(), role="reference").logps)
    assert all(torch.equal(before[name], p) for name, p in frozen(model).items())


@pytest.mark.parametrize("option", [{"use_dora": True}, {"use_rslora": True}])
@pytest.mark.parametrize("quantization", [None, nf4(), nf4(torch.bfloat16)], ids=["full", "nf4", "nf4-bf16"])
def test_dora_and_rslora_start_at_the_reference_and_learn(base, option, quantization):
    config = LoraConfig(r=4, **option)
    model = build_actor_critic(base, "adapter", peft_config=config, quantization_config=quantization)
    reference = model.eval()(*batch(), role="reference").logps
    assert torch.equal(model(*batch()).logps, reference)
    learn(model, batch())
    assert not torch.equal(model(*batch()).logps, reference)
    assert torch.equal(model(*batch(), role="reference").logps, reference)


def test_a_quantized_model_is_not_trained_without_adapters(base):
    with pytest.raises(ValueError, match="A quantized model cannot be trained itself.*give `peft_config`"):
        build_actor_critic(base, quantization_config=nf4())


def test_without_bitsandbytes_the_error_says_what_to_install(base, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    with pytest.raises(ImportError, match=r"pip install 'trl_ext\[quantization\]'"):
        build_actor_critic(base, peft_config=lora_config(), quantization_config=nf4())


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, 2))
    yield
    torch.set_num_threads(threads)


def test_the_folder_of_a_run_says_how_its_base_was_quantized(base, tmp_path):
    build_actor_critic(base, peft_config=lora_config(), quantization_config=nf4()).save_pretrained(tmp_path)
    assert '"bnb_4bit_quant_type": "nf4"' in Path(tmp_path / "quantization_config.json").read_text()
    build_actor_critic(base, peft_config=lora_config()).save_pretrained(tmp_path / "full")
    assert not (tmp_path / "full" / "quantization_config.json").exists()
