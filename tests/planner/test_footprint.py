# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The arithmetic of memory, against real models: their tensors, PEFT's count, torch's allocator."""

import copy
import gc
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache

from tests.tiny_models import VOCAB_SIZE, save_tiny, tiny_causal_lm, tiny_tokenizer
from trl_ext.actor_critic import build_actor_critic
from trl_ext.actor_critic.caches import static_cache
from trl_ext.experience.engines import generate
from trl_ext.planner import footprint
from trl_ext.planner.footprint import DryRun, Meter
from trl_ext.planner.weights import base_bytes, lora_parameters, meta_model, optimizer_bytes, quantized_bytes

FAMILIES = ["llama", "qwen2", "mistral", "gemma2", "phi", "gpt_neox", "gpt2"]
PROMPT, COMPLETION = 24, 40


def dry_run(config, **options) -> DryRun:
    settings: dict[str, Any] = {
        "quantization": "none",
        "critic": "adapter",
        "num_critics": 1,
        "prompt": PROMPT,
        "completion": COMPLETION,
        "rank": 4,
        "critic_rank": 4,
        "logits_chunk_size": 16,
        "gradient_checkpointing": True,
        "exact_kl": False,
        "dtype": torch.float32,
    }
    return DryRun(config, **settings | options)


def peak(moments) -> int:
    return max(sum(parts.values()) for parts in moments.values())


@pytest.mark.parametrize("arch", FAMILIES)
def test_counts_are_those_of_a_real_model(arch):
    real = tiny_causal_lm(arch, hidden_size=64)
    model = meta_model(real.config, torch.float32)
    assert base_bytes(model, "none") == sum(p.nbytes for p in real.parameters())
    assert all(p.is_meta for p in model.parameters())
    adapted = get_peft_model(real, LoraConfig(r=3, target_modules="all-linear"))
    assert lora_parameters(model, 3) == adapted.get_nb_trainable_parameters()[0]


def quantized_on_disk(folder, arch, settings) -> nn.Module:
    name = save_tiny(folder, tiny_causal_lm(arch, hidden_size=64))
    return AutoModelForCausalLM.from_pretrained(name, quantization_config=settings, dtype=torch.float32)


@pytest.mark.parametrize("arch", ["llama", "phi", "gpt2"])
def test_bytes_of_nf4_are_those_of_the_tensors_that_bitsandbytes_makes(tmp_path, arch):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    real = quantized_on_disk(tmp_path, arch, settings)
    total = 0
    for parameter in real.parameters():
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            nested = state.state2
            kept = (state.absmax, state.code, state.offset, nested.absmax, nested.code)
            total += sum(tensor.nbytes for tensor in kept)
    assert total < sum(p.nbytes for p in tiny_causal_lm(arch, hidden_size=64).parameters())
    assert base_bytes(meta_model(real.config, torch.float32), "nf4") == total


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_bytes_of_int8_are_those_of_the_tensors_that_bitsandbytes_makes(tmp_path, arch):
    real = quantized_on_disk(tmp_path, arch, BitsAndBytesConfig(load_in_8bit=True))
    total = sum(p.nbytes + getattr(p, "SCB", torch.empty(0)).nbytes for p in real.parameters())
    assert base_bytes(meta_model(real.config, torch.float32), "int8") == total


def test_bytes_of_a_quantized_weight_by_hand():
    # 65 x 4 = 260 elements: 130 bytes, 5 blocks of 64, 1 block of scales, an offset and 272 numbers in code books.
    assert quantized_bytes(260, 65, "nf4") == 130 + 5 + 4 + 4 + 4 * 272
    assert quantized_bytes(260, 65, "int8") == 260 + 4 * 65


def test_optimizer_state_is_that_of_the_real_one():
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(torch.ones(5000, dtype=dtype))
        weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.AdamW([weight])
        optimizer.step()
        moments = [optimizer.state[weight][name].nbytes for name in ("exp_avg", "exp_avg_sq")]
        assert optimizer_bytes(5000, weight.itemsize, "adamw_torch_fused") == sum(moments)
    assert optimizer_bytes(5000, 2, "paged_adamw_8bit") == 10_000
    assert optimizer_bytes(5000, 2, "sgd") == 0


def test_meter_counts_what_is_alive_once():
    with Meter(vocab_size=7) as meter:
        with meter.moment("two at once"):
            first = torch.empty(1000)
            second = first.view(10, 100).t() + 1
            del first
            third = torch.empty(50)
        with meter.moment("logits"):
            scores = torch.empty(3, 7)
            del second, third
            scores.exp_()
    assert meter.peaks["two at once"] == {"activations": 8000, "logits": 0}
    assert meter.peaks["logits"] == {"activations": 4200, "logits": 84}
    assert meter.now == {"activations": 0, "logits": 84}


def allocated_in_learning(
    arch: str, critic: str, checkpointing: bool, rank: int, critics: int, *, exact_kl: bool = False, every: int = 1
) -> int:
    """Peak of torch's allocator over a real micro-batch, as its own profiler reports it, in bytes."""
    torch.manual_seed(0)
    lora = LoraConfig(r=rank, target_modules="all-linear") if rank else None
    policy = tiny_causal_lm(arch, hidden_size=128, layers=6)
    model = build_actor_critic(policy, critic, peft_config=lora, num_critics=critics).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"every_n_layers": every})
    ids = torch.randint(3, VOCAB_SIZE, (4, PROMPT + COMPLETION))
    attention_mask = torch.ones_like(ids)
    attention_mask[0, :2] = 0

    mask = torch.ones(4, COMPLETION, dtype=torch.bool)
    states = None
    if exact_kl:
        states = model(ids, attention_mask, mask, chunk_size=16, role="with_reference").ref_states

    def micro_batch() -> None:
        out = model(ids, attention_mask, mask, chunk_size=16, ref_states=states)
        terms = [out.logps, out.entropy, out.values, *([] if out.kl is None else [out.kl])]
        sum(term.sum() for term in terms).backward()

    micro_batch()  # gradients from now on
    gc.collect()  # what an earlier test left would count as freed here
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        micro_batch()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("arch", "critic", "checkpointing", "rank", "critics"),
    [
        ("llama", "adapter", True, 4, 1),
        ("llama", "adapter", True, 4, 2),
        ("phi", "adapter", False, 4, 2),
        ("llama", "copy", True, 0, 1),
        ("gemma2", "adapter", True, 4, 1),
        ("phi", "head", False, 4, 1),
        ("gpt2", "adapter", True, 4, 1),
    ],
)
def test_learning_takes_what_the_dry_run_says(arch, critic, checkpointing, rank, critics):
    config = tiny_causal_lm(arch, hidden_size=128, layers=6).config
    settings = {"critic": critic, "gradient_checkpointing": checkpointing, "rank": rank, "critic_rank": rank}
    planned = dry_run(config, num_critics=critics, **settings)
    real = allocated_in_learning(arch, critic, checkpointing, rank, critics)
    assert peak(planned.learn(4)) == pytest.approx(real, rel=0.1)


def test_learning_with_fewer_checkpointed_layers_takes_what_the_dry_run_says():
    """Between the memory of every layer checkpointed and of none."""
    config, peaks = tiny_causal_lm(hidden_size=128, layers=6).config, []
    for every in (1, 2, 3):
        planned = peak(dry_run(config, critic="head", every_n_layers=every).learn(4))
        assert planned == pytest.approx(allocated_in_learning("llama", "head", True, 4, 1, every=every), rel=0.1)
        peaks.append(planned)
    none = peak(dry_run(config, critic="head", gradient_checkpointing=False).learn(4))
    assert 1.2 * peaks[0] < peaks[1] < peaks[2] < none


@pytest.mark.parametrize("rank", [0, 4])
def test_learning_from_the_exact_kl_takes_what_the_dry_run_says(rank):
    config = tiny_causal_lm(hidden_size=128, layers=6).config
    planned = dry_run(config, critic="head", rank=rank, exact_kl=True)
    real = allocated_in_learning("llama", "head", True, rank, 1, exact_kl=True)
    assert peak(planned.learn(4)) == pytest.approx(real, rel=0.1)


def test_forward_pass_without_checkpointing_holds_what_autograd_saves():
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)
    policy = get_peft_model(tiny_causal_lm(hidden_size=128, layers=6), lora)
    model = policy.get_base_model()
    known = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    saved: dict[int, int] = {}
    alive = []  # so that no address comes twice

    def keep(tensor):
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(3, VOCAB_SIZE, (4, PROMPT + COMPLETION))
    attention_mask = torch.ones_like(ids)
    attention_mask[0, 0] = 0  # without padding, attention would do without a mask and with fewer keys
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(ids, attention_mask=attention_mask).last_hidden_state
    # The saved tensors of the log-probabilities, which come after it, are not in.
    planned = dry_run(model.config, critic="head", gradient_checkpointing=False).learn(4)["log-probabilities"]
    assert planned["activations"] == pytest.approx(sum(saved.values()) + hidden.nbytes, rel=0.1)


@pytest.mark.parametrize("changes", [{}, {"model_type": "mistral", "sliding_window": 16}, {"model_type": "gemma2"}])
def test_cache_is_that_of_a_real_generation(changes):
    model = tiny_causal_lm(changes.get("model_type", "llama"), layers=6)
    model.config.sliding_window = changes.get("sliding_window")
    if changes.get("model_type") == "gemma2":
        model.config.sliding_window = 4096
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for start in range(0, PROMPT + COMPLETION, 8):
            model(torch.full((3, 8), 5 + start), past_key_values=cache, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert dry_run(model.config).generate(3)["last token"]["KV cache"] == pytest.approx(kept, rel=0.3 if changes else 0)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2"])
def test_a_static_cache_is_that_of_a_real_generation_from_its_prompts_on(arch, monkeypatch):
    model, made = tiny_causal_lm(arch, layers=6), []
    monkeypatch.setattr(generate, "static_cache", lambda *sizes: made.append(static_cache(*sizes)) or made[0])
    engine = generate.TransformersEngine(
        tiny_tokenizer(), eos_token_ids=[], max_new_tokens=COMPLETION, cache_implementation="static"
    )
    engine(model.eval(), [[5] * PROMPT] * 3)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in made[0].layers)
    planned = dry_run(model.config, cache_implementation="static").generate(3)
    assert [parts["KV cache"] for parts in planned.values()] == [kept, kept]
    growing = dry_run(model.config).generate(3)["prompts"]
    assert growing["activations"] < planned["prompts"]["activations"], "attention over the whole cache"


def test_other_layers_are_like_the_ones_that_are_run(monkeypatch):
    config = tiny_causal_lm("gemma2", layers=6).config
    few = {phase: getattr(dry_run(config), phase)(2) for phase in ("learn", "generate")}
    monkeypatch.setattr(footprint, "_DEPTHS", (6,))
    for phase, moments in few.items():
        every = getattr(dry_run(config), phase)(2)
        assert {m: pytest.approx(sum(every[m].values()), rel=0.02) for m in every} == {
            m: sum(moments[m].values()) for m in moments
        }


def test_quantized_layers_take_their_full_size_while_they_compute():
    config = tiny_causal_lm(hidden_size=128, layers=2).config
    short = {"prompt": 1, "completion": 1}
    plain, nf4 = (dry_run(config, quantization=q, **short).evaluate(1)["forward"] for q in ("none", "nf4"))
    widest = 128 * 256 * 4
    assert 0.9 * widest <= nf4["activations"] - plain["activations"] <= 1.1 * widest


def test_scaled_rotary_embeddings_can_be_run_without_values():
    config = tiny_causal_lm(layers=2).config
    scaled = copy.deepcopy(config)
    scaled.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert dry_run(scaled).learn(1) == dry_run(config).learn(1)
    assert scaled.rope_parameters["rope_type"] == "dynamic"


def test_moments_are_named_and_complete():
    moments = dry_run(tiny_causal_lm().config).learn(1)
    assert len(moments) == 6 and all(set(parts) == {"activations", "logits"} for parts in moments.values())
    assert moments["log-probabilities"]["logits"] >= 16 * VOCAB_SIZE * 4


def test_chunks_of_logits_bound_their_memory():
    config = tiny_causal_lm().config
    chunked, whole = (dry_run(config, logits_chunk_size=size).learn(4) for size in (8, 4096))
    held = {
        name: max(parts["logits"] for parts in moments.values()) for name, moments in (("c", chunked), ("w", whole))
    }
    assert held["w"] == pytest.approx(held["c"] * 4 * COMPLETION / 8, rel=0.1)
