# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The model card: its code loads what lies in the folder, its metadata is the Hub's, and it gives nothing away."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import metadata_load
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from tests import scripted
from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext.actor_critic.merge import merge
from trl_ext.model_card import add_merged_card, add_results, hub_id, write_model_card
from trl_ext.rewards import ToxicityReward

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"
RESULTS = {
    "toxicity_before": 0.5,
    "toxicity_ci95_before": [0.4, 0.6],
    "toxicity_after": 0.125,
    "toxicity_ci95_after": [0.1, 0.2],
    "toxicity_ema": 0.11,
    "toxicity_ci95_ema": [0.09, 0.14],
    "kl_ema": 2.75,
    "reward_ema": 1.9,
    "reward_before": 1.0,
    "reward_after": 2.0,
    "num_eval_prompts": 400,
    "kl": 3.25,
    "gold_win_rate": 0.75,
    "gold_win_rate_low": 0.625,
    "gold_win_rate_high": 0.875,
    "perplexity_after": float("nan"),
}


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear")


def brief(completions: list[Any], **kwargs: Any) -> list[float]:
    return [-len(str(completion)) / 9 for completion in completions]


def trained(folder: Path, **settings: Any) -> Any:
    made = scripted.trainer(folder, **{"reward_funcs": brief, "max_steps": 1, "total_episodes": None} | settings)
    made.train()
    made.save_model()
    return made


def generated(folder: Path, monkeypatch: pytest.MonkeyPatch, base: str = "BASE") -> str:
    """What the code of a card prints, in the folder that it says."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(folder.parent)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace('"BASE"', f'"{base}"'), "<the card>", "exec"), {})
    return printed.getvalue()


@pytest.fixture
def local(tmp_path: Path) -> str:
    """The folder of a base model with a chat template."""
    folder = save_tiny(tmp_path / "base-lm", tiny_causal_lm(hidden_size=128))
    tiny_tokenizer(chat_template=True).save_pretrained(folder)
    return folder


CHAT = Dataset.from_dict({"messages": [[{"role": "user", "content": f"question {i}"}] for i in range(8)]})


@pytest.mark.parametrize("kind", ["object", "folder", "adapter", "quantized", "adapter of an object"])
def test_the_code_of_the_card_loads_what_was_saved(kind, tmp_path, local, monkeypatch):
    out, settings = tmp_path / "out", {}
    if kind != "object":
        settings["model"] = local
    if kind in ("adapter", "quantized"):
        settings |= {"train_dataset": CHAT, "processing_class": tiny_tokenizer(chat_template=True), "critic": "adapter"}
    if kind == "adapter of an object":
        settings["model"] = tiny_causal_lm(hidden_size=128)
    if "adapter" in kind or kind == "quantized":
        settings["peft_config"] = lora()
    if kind == "quantized":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    trained(out, save_strategy="steps", save_steps=1, temperature=0.7, **settings)
    assert generated(out, monkeypatch, local).endswith("\n")
    card = (out / "README.md").read_text()
    assert ("apply_chat_template" in card) == ("train_dataset" in settings)
    assert ("load_in_4bit=True" in card and "bitsandbytes" in card) == (kind == "quantized")
    assert "temperature=0.7" in card and "`brief`, weight 1" in card
    assert ("`base-lm`" in card) == (kind in ("folder", "adapter", "quantized"))
    metadata = metadata_load(out / "README.md")
    assert metadata["library_name"] == ("peft" if "peft_config" in settings else "transformers")
    assert "base_model" not in metadata and {"trl_ext", "ppo"} <= set(metadata["tags"])
    cards = sorted(out.rglob("README.md"))
    assert cards == [out / "README.md", out / "checkpoint-1" / "README.md"]
    assert not [path for path in cards if str(tmp_path) in path.read_text()]
    assert 'name = "checkpoint-1"' in cards[1].read_text()


def test_a_merged_adapter_has_a_card_of_a_whole_model(tmp_path, local, monkeypatch):
    trained(tmp_path / "out", model=local, peft_config=lora())
    merge(tmp_path / "out", tmp_path / "merged")
    add_merged_card(tmp_path / "out", tmp_path / "merged")
    assert generated(tmp_path / "merged", monkeypatch).endswith("\n")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert metadata_load(tmp_path / "merged" / "README.md")["library_name"] == "transformers"
    assert "# merged\n\nA merge of `base-lm`" in card and "peft import" not in card and "## Training" in card
    add_merged_card(tmp_path / "base-lm", tmp_path / "merged")
    assert (tmp_path / "merged" / "README.md").read_text() == card, "nothing to go by"


def test_results_stand_with_their_intervals_also_after_a_push(tmp_path, monkeypatch):
    classifier = save_tiny(tmp_path / "toxicity-model", tiny_classifier())
    reward = ToxicityReward(classifier)
    settings = {"kl_target": 2.0, "kl_controller": "adaptive", "hub_token": SECRET, "hub_model_id": "me/polite"}
    made = trained(tmp_path / "out", reward_funcs=[reward, brief], reward_weights=[1.0, 0.5], **settings)
    card = tmp_path / "out" / "README.md"
    assert "Means over rollouts of training at the last log, without intervals." in card.read_text()
    write_model_card(tmp_path / "out", made, results=RESULTS, dataset_name="allenai/real-toxicity-prompts")
    uploaded = {}

    class Hub:
        def create_repo(self, name: str, **kwargs: Any) -> Any:
            return type("Url", (), {"repo_id": name})()

        def upload_folder(self, folder_path: str, repo_id: str, **kwargs: Any) -> None:
            uploaded[repo_id] = (Path(folder_path) / "README.md").read_text()

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    made.push_to_hub()
    text = uploaded["me/polite"]
    for row in (
        "|  | before | after | policy average |\n|---|---|---|---|\n",
        "| toxicity | 50.0% [40.0% to 60.0%] | 12.5% [10.0% to 20.0%] | 11.0% [9.0% to 14.0%] |",
        "| reward | 1 | 2 | 1.9 |",
        "| gold win rate | 50.0% | 75.0% [62.5% to 87.5%] |  |",
        "| KL to the reference, nats per completion | 0 | 3.25 | 2.75 |",
        "Measured on 400 prompts",
        "(model `toxicity-model`), weight 1",
        "`brief`, weight 0.5",
        "target 2 nats per completion",
        'name = "me/polite"',
        "trl_ext 0.",
        "Prompts: `allenai/real-toxicity-prompts`, 16 rows",
    ):
        assert row in text, row
    assert "nan" not in text.lower().replace("finance", "") and "# polite\n" in text
    assert metadata_load(card)["datasets"] == ["allenai/real-toxicity-prompts"]
    assert SECRET not in text and str(tmp_path) not in text and SECRET not in card.read_text()


def test_an_evaluation_takes_the_place_of_the_last_rollout(tmp_path):
    made = trained(tmp_path, eval_dataset=scripted.prompts(4), eval_strategy="steps", eval_steps=1)
    card = (tmp_path / "README.md").read_text()
    logged = next(line["eval_reward"] for line in made.state.log_history if "eval_reward" in line)
    assert f"| reward | {logged:.3g} |" in card and "Means of the last evaluation during training" in card
    add_results(tmp_path, RESULTS)
    added = (tmp_path / "README.md").read_text()
    assert "| reward | 1 | 2 | 1.9 |" in added and "last evaluation" not in added
    assert added.partition("## How to load")[2] == card.partition("## How to load")[2]


def test_a_base_is_linked_only_where_the_hub_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    snapshot = "/home/me/.cache/huggingface/hub/models--Qwen--Qwen2.5-0.5B/snapshots/0a1b"
    names = [
        "Qwen/Qwen2.5-0.5B",
        "gpt2",
        snapshot,
        "models/llama",
        "/gone/llama",
        "./llama",
        "~/llama",
        "a/b/c",
        "",
        None,
    ]
    ids = ["Qwen/Qwen2.5-0.5B", "gpt2", "Qwen/Qwen2.5-0.5B", *[None] * 7]
    assert [hub_id(name) for name in names] == ids
    model = tiny_causal_lm()
    model.config.name_or_path = "Qwen/Qwen2.5-0.5B"
    trained(tmp_path / "out", model=model)
    assert metadata_load(tmp_path / "out" / "README.md")["base_model"] == "Qwen/Qwen2.5-0.5B"
