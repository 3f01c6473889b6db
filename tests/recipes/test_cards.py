# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The configurations by card, each with a scaled-down model of its family: they build, learn and are what they say."""

import json
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification

from recipes.detoxification import make_parser, make_trainer
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer

CARDS = sorted((Path(__file__).parents[2] / "recipes" / "configs" / "cards").glob("*.yaml"))
FAMILY = {"meta-llama": "llama", "Qwen": "qwen2"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("classifier")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {"id2label": {0: "nontoxic", 1: "toxic"}, "label2id": {"nontoxic": 0, "toxic": 1}}
    config = AutoConfig.for_model("bert", vocab_size=160, max_position_embeddings=128, **sizes, **labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_there_is_one_for_every_size_of_card():
    assert {path.stem.split("_")[0] for path in CARDS} == {"8gb", "12gb", "16gb", "24gb"}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_scaled_down_model_trains_two_updates(path, classifier, tmp_path):
    named = yaml.safe_load(path.read_text())
    family = FAMILY[named["model_name_or_path"].split("/")[0]]
    tiny_causal_lm(family, hidden_size=64).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    prompts = [{"prompt": f"the cat sat {i}"} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    scaled_down = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "prompts.jsonl",
        "eval_dataset_name": tmp_path / "prompts.jsonl",
        "toxicity_model": classifier,
        "judge_model": classifier,
        "output_dir": tmp_path / "out",
        "max_completion_length": 6,
        "max_prompt_length": 64,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 1,
        "total_episodes": 4 * named["per_device_train_batch_size"],
        "logging_steps": 1,
        "report_to": "none",
    }
    command = ["--config", str(path), "--use_cpu"]
    for name, value in scaled_down.items():
        command += [f"--{name}", str(value)]
    trainer = make_trainer(*make_parser().parse_recipe(command))

    layers = [module for module in trainer.model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 14 and all(layer.weight.quant_state.nested for layer in layers)
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}
    adapters = trainer.model.policy.peft_config
    assert adapters["default"].r == named["lora_r"] and adapters["critic"].r == named["critic_lora_rank"]
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert isinstance(getattr(trainer.optimizer, "optimizer", trainer.optimizer), bnb.optim.AdamW)
    assert trainer.state.global_step == 2
    assert trainer.model.causal_lm.is_gradient_checkpointing
    logs = [log for log in trainer.state.log_history if "kl" in log]
    assert logs[0]["kl"] == 0.0 and logs[0]["ratio/max"] == 1.0
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    trainable = {name for name, _ in trainer.model.actor_parameters() + trainer.model.critic_parameters()}
    assert moved <= trainable and any(".default." in name for name in moved) and any("value" in name for name in moved)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_it_says_that_it_was_not_run_at_its_size(path):
    text = path.read_text()
    assert "Not run by this project at this size" in text and f"recipes/configs/cards/{path.name}" in text
