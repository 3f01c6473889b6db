# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""N reward adapters on one base score as N reward models, at little more than the price of one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_tokenizer
from trl_ext.actor_critic import AdapterRewardModel, load_reward_ensemble
from trl_ext.rewards import Ensemble, PreferenceReward

PROMPTS, COMPLETIONS = ["the cat", "a", "you are a kind person"], [" sat", " small dog ran", ""]


def save_adapters(folder: Path, base: str, count: int, **options: Any) -> list[str]:
    """Reward adapters with random weights, saved by PEFT as TRL's RewardTrainer does it."""
    settings: dict[str, Any] = {"r": 8, "target_modules": "all-linear", "lora_dropout": 0.5}
    folders = []
    for i in range(count):
        config = LoraConfig(**(settings | options), task_type="SEQ_CLS", modules_to_save=["score"])
        model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), config)
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        model.save_pretrained(folder / f"judge-{i}")
        folders.append(str(folder / f"judge-{i}"))
    return folders


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("base"), tiny_causal_lm())


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory) -> list[str]:
    return save_adapters(tmp_path_factory.mktemp("adapters"), base, 4)


def functions(models: list) -> list[PreferenceReward]:
    return [PreferenceReward(model, tokenizer=tiny_tokenizer(), append_eos=True) for model in models]


def test_scores_equal_those_of_separate_models(base, folders):
    members = functions(load_reward_ensemble(base, folders))
    assert [member.__name__ for member in members] == [f"judge-{i}" for i in range(4)]
    expected = []
    for member, folder in zip(members, folders, strict=True):
        whole = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        # `from_pretrained` puts it in eval mode, and PreferenceReward would: without dropout
        [separate] = functions([whole.merge_and_unload()])
        expected.append(separate(PROMPTS, COMPLETIONS))
        assert member(PROMPTS, COMPLETIONS) == pytest.approx(expected[-1], abs=1e-5)
    assert len({round(score, 3) for row in expected for score in row}) == 12, "every score is another"
    worst = Ensemble(members, "min")(PROMPTS, COMPLETIONS)
    assert worst == pytest.approx([min(column) for column in zip(*expected, strict=True)], abs=1e-5)


def weight_bytes(models: list[AdapterRewardModel]) -> int:
    """Bytes of all weights behind the models, shared ones counted once."""
    modules: list[nn.Module] = [*models, *(model._shared[0] for model in models)]
    tensors = [p for module in modules for p in [*module.parameters(), *module.buffers()]]
    return sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_four_adapters_cost_little_more_than_one(tmp_path):
    """The proportions of a real model: rank 16 on a width of 512; a 1B model has a width of 2048."""
    base = save_tiny(tmp_path / "base", tiny_causal_lm(hidden_size=512, vocab_size=1024))
    folders = save_adapters(tmp_path, base, 4, r=16)
    one, four = (weight_bytes(load_reward_ensemble(base, folders[:n])) for n in (1, 4))
    assert 1.0 < four / one <= 1.3
    trunk = tiny_causal_lm(hidden_size=512, vocab_size=1024).base_model
    assert one > sum(p.numel() * 4 for p in trunk.parameters())


def test_the_language_model_head_is_let_go(base, folders):
    model, *_ = load_reward_ensemble(base, folders)[0]._shared
    assert not any("lm_head" in name for name, _ in model.named_parameters())


def test_on_a_4_bit_base(tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm(hidden_size=64))
    folders = save_adapters(tmp_path, base, 2)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    models = load_reward_ensemble(base, folders, quantization_config=nf4)
    assert sum(p.dtype == torch.uint8 for p in models[0]._shared[0].parameters()) == 14
    for member, folder in zip(functions(models), folders, strict=True):
        whole = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, quantization_config=nf4)
        for module in whole.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False  # bitsandbytes' kernel for CPUs rounds to bfloat16
        ids = tiny_tokenizer()([p + c + "<eos>" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])["input_ids"]
        with torch.no_grad():
            expected = [whole.eval()(input_ids=torch.tensor([row])).logits.item() for row in ids]
        assert member(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)


def test_a_loaded_base_is_frozen_and_stays_what_it_is(folders):
    model = tiny_causal_lm().train()
    members = load_reward_ensemble(model, folders[:2])
    assert model.get_output_embeddings() is not None and isinstance(model.get_output_embeddings(), nn.Linear)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    first = functions(members)[0](PROMPTS, COMPLETIONS)
    assert functions(members)[0](PROMPTS, COMPLETIONS) == first, "no dropout"


def test_errors(base, folders, tmp_path):
    with pytest.raises(ValueError, match="at least one adapter"):
        load_reward_ensemble(base, [])
    with pytest.raises(FileNotFoundError, match="nothing' has no `adapter_config.json`"):
        load_reward_ensemble(base, [folders[0], tmp_path / "nothing"])
    with pytest.raises(FileNotFoundError, match="nothing' has no `adapter_config.json`"):
        load_reward_ensemble(base, [tmp_path / "nothing"])
    with pytest.raises(ValueError, match="loaded model"):
        load_reward_ensemble(tiny_causal_lm(), folders, dtype="float32")
    with pytest.raises(ValueError, match="belongs to another base"):
        load_reward_ensemble(tiny_causal_lm(hidden_size=16), folders)
