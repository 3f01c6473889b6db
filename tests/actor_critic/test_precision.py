# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Weights that are trained are float32, whatever checkpoint they come from."""

import itertools
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, TaskType
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from tests.actor_critic.makes import batch, reference, scramble
from tests.tiny_models import prompt_dataset, save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext import PPOConfig, PPOTrainer
from trl_ext.actor_critic import ActorCritic, build_actor_critic
from trl_ext.actor_critic.value_head import ValueHead

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """The same policy in every dtype, and a reward model in bfloat16."""
    root = tmp_path_factory.mktemp("models")
    saved = {name: save_tiny(root / name, tiny_causal_lm(hidden_size=64).to(dtype)) for name, dtype in DTYPES.items()}
    reward_model = tiny_classifier(["reward"], arch="llama", hidden_size=64, seed=5).bfloat16()
    return saved | {"reward": save_tiny(root / "reward", reward_model)}


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **options)


ADAPTERS = {
    "full": lambda: None,
    "lora": lora,
    "dora": lambda: lora(use_dora=True),
    "modules_to_save": lambda: lora(modules_to_save=["lm_head", "embed_tokens"]),
    "norms_to_save": lambda: lora(modules_to_save=["input_layernorm", "norm"]),
    "mlp_to_save": lambda: LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["mlp"]),
    "new_tokens": lambda: lora(trainable_token_indices={"embed_tokens": [3, 5, 8]}),
    "embedding": lambda: LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "q_proj"]),
    "ia3": lambda: IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "norm_tuning": lambda: LNTuningConfig(task_type=TaskType.CAUSAL_LM, target_modules=["input_layernorm", "norm"]),
}
CRITICS = ("head", "adapter", "copy", "name")
CASES = [
    (adapter, critic, quantized)
    for adapter, critic, quantized in itertools.product(ADAPTERS, CRITICS, (False, True))
    if not (adapter == "full" and (critic == "adapter" or quantized))
    and not (adapter != "full" and critic == "copy")
    and not (adapter in ("ia3", "norm_tuning") and critic == "adapter")
    and not (adapter == "mlp_to_save" and (critic != "head" or quantized))
    and not (adapter in ("norms_to_save", "new_tokens", "embedding", "ia3", "norm_tuning") and critic == "name")
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("adapter", "critic", "quantized"), CASES)
def test_every_trained_parameter_is_float32_and_the_base_keeps_its_dtype(adapter, critic, quantized, dtype, folders):
    """And all runs, forward, backward and `generate`, without autocast and under it, from a KL of exactly 0."""
    config = ADAPTERS[adapter]()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings|Unsupported layer type")
        model = build_actor_critic(
            folders[dtype],
            folders["reward"] if critic == "name" else critic,
            peft_config=config,
            quantization_config=nf4(DTYPES[dtype]) if quantized else None,
        )
    trained = model.actor_parameters() + model.critic_parameters()
    assert {p.dtype for _, p in trained} == {torch.float32}
    if config is not None:
        base = [p for n, p in model.named_parameters() if n.endswith("input_layernorm.weight") and "policy" in n]
        kept = DTYPES[dtype]
        if adapter not in ("norms_to_save", "norm_tuning"):
            assert base and {p.dtype for p in base} == {kept}
    start = {name: p.detach().clone() for name, p in trained}
    for context in (nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        if dtype == "float16" and not isinstance(context, nullcontext):
            continue  # a float16 base under bfloat16 autocast is nobody's setting
        with context:
            out = model.train()(*batch())
            assert torch.equal(out.logps, reference(model, batch()))
            assert {out.logps.dtype, out.values.dtype} == {torch.float32}
            ((out.logps * torch.linspace(-1, 1, 15).view(3, 5)).sum() + (out.values - 1).square().sum()).backward()
            assert any(p.grad is not None and p.grad.any() for _, p in model.actor_parameters())
            model.zero_grad()
            ids = model.eval().causal_lm.generate(torch.tensor([[5, 9, 11]]), max_new_tokens=3, do_sample=False)
            assert ids.shape[1] > 3
    assert all(torch.equal(p, start[name]) for name, p in trained)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapters_on_a_lower_precision_base_compute_what_they_do_on_its_weights_in_float32(dtype, folders):
    """Up to the rounding of what the base computes."""
    low = build_actor_critic(folders[dtype], peft_config=lora())
    exact = build_actor_critic(folders[dtype], peft_config=lora(), init_kwargs={"dtype": "float32"})
    for model in (low, exact):
        scramble(model, scale=0.1)
    difference = (low.eval()(*batch()).logps - exact.eval()(*batch()).logps).abs().max()
    assert 0 < difference < (0.3 if dtype == "bfloat16" else 0.03)


# ---- what the user asks for ----


def trained_in(model: ActorCritic) -> set[torch.dtype]:
    return {p.dtype for _, p in model.actor_parameters() + model.critic_parameters()}


def test_bfloat16_that_was_asked_for_warns(folders):
    with pytest.warns(UserWarning, match="`model` is trained in bfloat16.*set `bf16=True`"):
        model = build_actor_critic(folders["float32"], init_kwargs={"dtype": "bfloat16"})
    assert trained_in(model) == {torch.bfloat16, torch.float32}, "the value head is float32 all the same"
    with pytest.warns(UserWarning, match="`model` and `critic` are trained in bfloat16"):
        build_actor_critic(tiny_causal_lm().bfloat16(), "copy")
    with pytest.warns(UserWarning, match="`critic` is trained in bfloat16"):
        build_actor_critic(tiny_causal_lm(), tiny_causal_lm().bfloat16())


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_float16_is_refused_before_anything_is_loaded(name, folders, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match="`model` would be trained in float16.*`fp16=True`"):
        build_actor_critic(folders["float32"], init_kwargs={name: "float16"})


def test_float16_objects_are_refused():
    with pytest.raises(ValueError, match="`model` would be trained in float16"):
        ActorCritic(tiny_causal_lm().half())
    with pytest.raises(ValueError, match="`critic` would be trained in float16"):
        ActorCritic(tiny_causal_lm(), tiny_causal_lm().half())


def test_auto_is_no_wish_for_bfloat16(folders):
    assert trained_in(build_actor_critic(folders["bfloat16"], init_kwargs={"dtype": "auto"})) == {torch.float32}


def test_a_dtype_of_the_base_is_not_the_critics(folders):
    options = {"dtype": "bfloat16"}
    model = build_actor_critic(folders["float32"], folders["reward"], peft_config=lora(), init_kwargs=options)
    assert trained_in(model) == {torch.float32} and model.dtype == torch.bfloat16
    assert model.critic is not None and model.critic.dtype == torch.float32


def test_adapters_that_come_in_bfloat16_are_trained_in_float32():
    from peft import get_peft_model

    policy = get_peft_model(tiny_causal_lm().bfloat16(), lora(use_dora=True), autocast_adapter_dtype=False)
    assert any("lora_A" in n and p.dtype == torch.bfloat16 for n, p in policy.named_parameters())
    model = ActorCritic(policy, "adapter")
    assert trained_in(model) == {torch.float32}
    assert torch.equal(model(*batch()).logps, reference(model, batch()))


# ---- heads ----


def test_a_value_head_computes_in_float32_whatever_its_weights():
    """`.to(bfloat16)`, `bf16_full_eval` and FSDP's mixed precision convert the weights."""
    head, hidden = ValueHead(64), torch.randn(3, 5, 64) * 100
    torch.nn.init.normal_(head.weight)
    weights = head.weight.detach().clone()
    low = head.to(torch.bfloat16)(hidden.bfloat16())
    expected = hidden.bfloat16().double() @ weights.bfloat16().double()[0]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), expected, rtol=1e-5, atol=1e-3)


def test_a_whole_actor_critic_in_bfloat16_still_answers(folders):
    model = build_actor_critic(folders["float32"], "adapter", peft_config=lora()).to(torch.bfloat16)
    out = model.eval()(*batch())
    assert out.values.dtype == torch.float32 and out.values.isfinite().all()


# ---- 32 steps at a learning rate of 3e-6 ----


def reward(completions, **_):
    return [float(sum(map(ord, text)) % 7) for text in completions]


def train(model: str | PreTrainedModel, folder: Path, **options: Any) -> PPOTrainer:
    args = PPOConfig(
        output_dir=str(folder),
        learning_rate=3e-6,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        num_ppo_epochs=4,
        max_steps=32,
        max_completion_length=8,
        critic="head",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    tokenizer = tiny_tokenizer()
    trainer = PPOTrainer(model, reward, args, train_dataset=prompt_dataset(16), processing_class=tokenizer, **options)
    trainer.initial = {name: p.detach().clone() for name, p in trainer.model.actor_parameters()}
    trainer.train()
    return trainer


def moved(trainer: PPOTrainer, part: str = "") -> float:
    """Share of the policy's weights that are not what they were."""
    pairs = [(trainer.initial[n], p.detach()) for n, p in trainer.model.actor_parameters() if part in n]
    assert pairs
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def test_a_bfloat16_checkpoint_by_name_learns_as_a_float32_object_does(folders, tmp_path):
    by_name = train(folders["bfloat16"], tmp_path / "name")
    model = AutoModelForCausalLM.from_pretrained(folders["bfloat16"], dtype=torch.float32)
    by_object = train(model, tmp_path / "object")
    share = moved(by_name)
    print(f"moved: {share:.4f}")
    assert share >= 0.9
    theirs = dict(by_object.model.named_parameters())
    assert max((p - theirs[name]).abs().max().item() for name, p in by_name.model.named_parameters()) <= 1e-6


def test_in_bfloat16_few_weights_would_move(folders, tmp_path):
    """The measure measures: what was asked for in bfloat16 hardly learns."""
    model = AutoModelForCausalLM.from_pretrained(folders["bfloat16"], dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="trained in bfloat16"):
        trainer = train(model, tmp_path)
    print(f"moved in bfloat16: {moved(trainer):.4f}")
    assert moved(trainer) < 0.3


@pytest.mark.parametrize("quantized", [False, True], ids=["bf16", "nf4"])
def test_adapters_on_a_lower_precision_base_move(quantized, folders, tmp_path):
    options = {"quantization_config": nf4(torch.bfloat16)} if quantized else {}
    trainer = train(folders["bfloat16"], tmp_path, peft_config=lora(use_dora=True), **options)
    shares = {part: moved(trainer, part) for part in ("lora_A", "lora_B", "magnitude")}
    print(f"moved: {shares}")
    assert all(share >= 0.9 for share in shares.values()), shares
