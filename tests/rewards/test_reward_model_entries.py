# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""However a reward model enters, it reads the tokens that TRL's RewardTrainer made of the same rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from tests.families import EXAMPLES, base, real_tokenizer, reward_adapter, reward_model
from trl_ext import PPOConfig, PPOTrainer, assembly
from trl_ext.actor_critic import load_reward_ensemble
from trl_ext.evaluation.judges import RewardJudge
from trl_ext.evaluation.reward_models import evaluate_reward_models
from trl_ext.rewards import Clipped, PreferenceReward, RewardRunner, ToxicityReward

PROMPTS = [prompt for prompt, _, _ in EXAMPLES]
GOOD, BAD = ([row[side] for row in EXAMPLES] for side in (1, 2))
USER, BEGUN = {"role": "user", "content": "Is it far?"}, {"role": "assistant", "content": "I am sure"}


def alone(folder: str, texts: list[str]) -> list[float]:
    """Scores of transformers' classifier for tokenized texts as they are, one at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]


def accuracy(better: list[float], worse: list[float]) -> float:
    return sum(a > b for a, b in zip(better, worse, strict=True)) / len(better)


def by_runner(source: Any, completions: list[str], **options: Any) -> list[float]:
    scores = RewardRunner(source, **options)(PROMPTS, completions, [[0]] * len(completions), {})
    return scores.per_function[:, 0].tolist()


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_neox", "qwen2", "mistral"])
def test_every_way_in_reads_alike_and_ranks_as_trained(family):
    folder = reward_model(family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [[p + a + tokenizer.eos_token for p, a in zip(PROMPTS, side, strict=True)] for side in (GOOD, BAD)]
    better, worse = (alone(folder, side) for side in texts)
    assert accuracy(better, worse) >= 0.95, "TRL taught it"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ways = {
        "by name": by_runner(folder, GOOD),
        "in a list": by_runner([folder], GOOD),
        "by path": by_runner(Path(folder), GOOD),
        "as an object": by_runner(model, GOOD, processing_classes=tokenizer),
        "as a reward": PreferenceReward(folder)(PROMPTS, GOOD),
    }
    for way, scores in ways.items():
        assert scores == pytest.approx(better, abs=1e-4), way
    assert RewardJudge(PreferenceReward(folder))(PROMPTS, GOOD, BAD) == [1] * len(GOOD)
    rows = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in EXAMPLES]
    report, each = evaluate_reward_models([PreferenceReward(folder)], rows)
    assert report.accuracy == each[0].accuracy and report.accuracy.estimate >= 0.95
    without = PreferenceReward(folder, append_eos=False)(PROMPTS, GOOD)
    # With pad == eos the reward is read before the EOS, which therefore changes nothing.
    assert (without == pytest.approx(better, abs=1e-2)) == (tokenizer.pad_token == tokenizer.eos_token)


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2", "llama"])
def test_an_adapter_by_name_and_on_the_policys_base_read_alike(family):
    """Also where padding and EOS are one token, so that training read the token before the EOS."""
    folder = reward_adapter(family, "float32")
    members = load_reward_ensemble(base(family, "float32"), [folder])
    shared, named = PreferenceReward(members[0]), PreferenceReward(folder)
    assert shared(PROMPTS, GOOD) == pytest.approx(named(PROMPTS, GOOD), abs=1e-4)
    assert accuracy(shared(PROMPTS, GOOD), shared(PROMPTS, BAD)) >= 0.95


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "gemma3", "qwen2", "qwen3", "deepseek_v3", "gpt_neox"])
def test_tokens_are_those_of_reward_trainer(family, tmp_path):
    """For plain text and for conversations, BOS and EOS included."""
    tokenizer = real_tokenizer(family)
    folder = base(family, "float32")
    rows: list[dict[str, Any]] = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in EXAMPLES[:3]]
    rows.append({"prompt": "No EOS twice: ", "chosen": "end" + tokenizer.eos_token, "rejected": ""})
    kinds = [rows]
    if tokenizer.chat_template is not None:
        kinds.append(
            [
                {"prompt": [{"role": "user", "content": row["prompt"]}]}
                | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
                for row in rows
            ]
        )
    for some in kinds:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        args = RewardConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False)
        trainer = RewardTrainer(model, args, train_dataset=Dataset.from_list(some), processing_class=tokenizer)
        reward = PreferenceReward(model, tokenizer=real_tokenizer(family), batch_size=1)
        seen: list[list[int]] = []
        model.register_forward_pre_hook(
            lambda _, a, k, seen=seen: seen.append(k["input_ids"][0].tolist()), with_kwargs=True
        )
        for side in ("chosen", "rejected"):
            for row, trained in zip(some, trainer.train_dataset, strict=True):
                reward([row["prompt"]], [row[side]])
                assert seen[-1] == trained[f"{side}_ids"], (side, row)


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "gemma3", "qwen2", "qwen3", "deepseek_v3"])
def test_templates_that_write_bos_get_no_second_one_and_a_begun_turn_is_one(family):
    tokenizer = real_tokenizer(family)
    model = AutoModelForSequenceClassification.from_pretrained(base(family, "float32"), num_labels=1)
    reward = PreferenceReward(model, tokenizer=tokenizer)
    seen: list[list[int]] = []
    model.register_forward_pre_hook(lambda _, a, k: seen.append(k["input_ids"][0].tolist()), with_kwargs=True)
    reward([[USER, BEGUN]], [[{"role": "assistant", "content": " that it is not."}]])
    whole = [USER, {"role": "assistant", "content": "I am sure that it is not."}]
    assert seen[-1] == tokenizer.apply_chat_template(whole)["input_ids"]
    if tokenizer.bos_token_id is not None:
        assert seen[-1].count(tokenizer.bos_token_id) <= 1


def test_a_trainer_finds_a_misspelt_reward_model_before_it_loads_the_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "build_actor_critic", lambda *a, **k: pytest.fail("the policy was loaded"))
    args = PPOConfig(output_dir=str(tmp_path), report_to="none")
    for reward in ("no/such-model", PreferenceReward("no/such-model"), [ToxicityReward("no/such-model")]):
        with pytest.raises(ValueError, match="'no/such-model' cannot be loaded as a sequence-classification model"):
            PPOTrainer("x", reward, args, train_dataset=Dataset.from_dict({"prompt": ["a"]}))


def test_a_runner_loads_models_inside_combinations_at_once():
    inner = PreferenceReward(reward_model("qwen2"))
    assert inner.scorer._model is None
    RewardRunner(Clipped(inner, low=0))
    assert inner.scorer._model is not None
