# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.tiny_models import save_tiny, tiny_classifier, tiny_tokenizer
from trl_ext.commands.average import main
from trl_ext.rewards.warm import average_reward_models

IDS = torch.tensor([[5, 9, 11, 40, 20, 21]])


def reward_model(seed=0, **sizes):
    return tiny_classifier(("reward",), arch="llama", seed=seed, **({"layers": 2} | sizes))


def scores(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def adapter(folder: Path, base: str, seed: int, **options: Any) -> str:
    """A reward adapter with random updates and head, and a rank and a scale of its own."""
    model = AutoModelForSequenceClassification.from_pretrained(base)
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "SEQ_CLS"}
    model = get_peft_model(model, LoraConfig(**(settings | options)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("base"), reward_model())


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_whole_models(shard_size, tmp_path):
    models = [reward_model(seed) for seed in range(3)]
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / f"m{i}", max_shard_size=shard_size)
    tiny_tokenizer().save_pretrained(tmp_path / "m0")
    assert len(list((tmp_path / "m0").glob("*.safetensors"))) == (1 if shard_size == "1GB" else 6)
    output = average_reward_models([tmp_path / f"m{i}" for i in range(3)], tmp_path / "deep" / "out")
    average = AutoModelForSequenceClassification.from_pretrained(output)
    for name, p in average.named_parameters():
        expected = torch.stack([dict(model.named_parameters())[name] for model in models]).mean(0)
        assert torch.allclose(p, expected, atol=1e-6), name
    assert (output / "tokenizer.json").is_file()
    assert sorted(p.name for p in output.parent.iterdir()) == ["out"], "nothing is left over"


def test_bfloat16_is_summed_in_float32(tmp_path):
    for i, number in enumerate([1.0, 2**-9, 2**-9, 2**-9]):  # in bfloat16, 1 + 2**-9 is 1
        model = reward_model()
        model.score.weight.data.fill_(number)
        model.to(torch.bfloat16).save_pretrained(tmp_path / f"m{i}")
    output = average_reward_models([tmp_path / f"m{i}" for i in range(4)], tmp_path / "out")
    weight = load_file(output / "model.safetensors")["score.weight"]
    assert weight.dtype == torch.bfloat16 and weight[0, 0] == torch.tensor((1 + 3 * 2**-9) / 4, dtype=torch.bfloat16)
    assert weight[0, 0] > 0.25


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "alike": [{}, {}],
    "ranks and scales of their own": [{"r": 2, "lora_alpha": 6}, {"r": 4, "lora_alpha": 1}, {"lora_alpha": 16}],
    "rank-stabilized": [{"use_rslora": True, "lora_alpha": 4}, {"r": 9, "lora_alpha": 4}],
    "patterns": [
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
        {"r": 3, "alpha_pattern": {"q_proj": 5}},
    ],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_update_of_averaged_adapters_is_the_mean_of_their_updates(name, base, tmp_path):
    """PEFT itself says what each adapter makes of the base's weights."""
    folders = [adapter(tmp_path / f"a{i}", base, seed=i, **options) for i, options in enumerate(OPTIONS[name])]
    output = average_reward_models(folders, tmp_path / "out")

    def merged(folder):
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        return dict(model.merge_and_unload().named_parameters())

    whole, average = [merged(folder) for folder in folders], merged(output)
    moved = 0
    for key, p in average.items():
        expected = torch.stack([weights[key] for weights in whole]).mean(0)
        assert torch.allclose(p, expected, atol=1e-5), key
        moved += not torch.equal(p, whole[0][key])
    assert moved == 5, "two layers in each of two blocks, and the head"


@pytest.fixture
def whole(tmp_path) -> list[Path]:
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        reward_model(seed).save_pretrained(folder)
    return folders


def refused(folders, tmp_path, message, error: type[Exception] = ValueError):
    with pytest.raises(error, match=message):
        average_reward_models(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_what_has_no_average_is_refused(whole, base, tmp_path):
    one, two = whole
    refused([one], tmp_path, "at least two reward models; got 1")
    refused([one, tmp_path / "nothing"], tmp_path, "nothing' has no `config.json`", FileNotFoundError)
    reward_model(hidden_size=16).save_pretrained(tmp_path / "narrow")
    refused([one, tmp_path / "narrow"], tmp_path, r"differ in `head_dim` \(8 and 4\)")
    tiny_classifier(("a", "b"), arch="llama", layers=2).save_pretrained(tmp_path / "labels")
    refused([tmp_path / "labels"] * 2, tmp_path, "has 2 labels")
    (two / "model.safetensors").rename(two / "pytorch_model.bin")
    refused([one, two], tmp_path, "no `model.safetensors`; save the model with safetensors", FileNotFoundError)
    with pytest.raises(ValueError, match="is in use"):
        average_reward_models([one, one], one)


def test_quantized_weights_are_refused(whole, tmp_path):
    for folder in whole:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_4bit": True}}))
    refused(whole, tmp_path, "quantized weights")


def test_adapters_that_have_no_average_are_refused(whole, base, tmp_path):
    plain = adapter(tmp_path / "plain", base, 0)
    refused([plain, whole[0]], tmp_path, "plain' is an adapter and '.*one' is none")
    refused([plain, adapter(tmp_path / "dora", base, 0, use_dora=True)], tmp_path, "dora' is no plain LoRA")
    refused([plain, adapter(tmp_path / "pissa", base, 0, init_lora_weights="pissa")], tmp_path, "'pissa'")
    fewer = adapter(tmp_path / "fewer", base, 0, target_modules=["q_proj"])
    refused([plain, fewer], tmp_path, "differ in `base_model.*down_proj")
    other = save_tiny(tmp_path / "other", reward_model(1))
    refused([plain, adapter(tmp_path / "elsewhere", other, 0)], tmp_path, "differ in `base_model_name_or_path`")
    headless = adapter(tmp_path / "headless", base, 0, task_type="FEATURE_EXTRACTION")
    refused([headless, headless], tmp_path, "has no trained head")


def test_command_line(whole, tmp_path, capsys):
    main([str(tmp_path / "out"), *map(str, whole)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "out"), *map(str, whole)])
    assert end.value.code == 2
    assert "is in use" in capsys.readouterr().err
