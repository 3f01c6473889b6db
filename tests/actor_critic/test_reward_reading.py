# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A reward adapter is read where TRL's RewardTrainer trained it, also where padding and EOS are one token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from tests.tiny_models import PAD_ID, save_tiny, tiny_causal_lm, tiny_tokenizer
from trl_ext.actor_critic import build_actor_critic, load_reward_ensemble
from trl_ext.rewards import PreferenceReward

PROMPTS = ["the cat", "a small dog", "you are", "what do you think"] * 2
ANSWERS = [
    " sat on the mat",
    " ran",
    " a kind person",
    " of it",
    " is nice<eos>",
    "",
    " the worst idea",
    " today<eos><eos>",
]


def tokenizer_without_pad() -> PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    return tokenizer


def train(base: str, folder: Path, tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    """A reward adapter, trained and saved by TRL."""
    pairs = Dataset.from_dict(
        {"prompt": PROMPTS, "chosen": [" is kind" + a for a in ANSWERS], "rejected": [" is bad" + a for a in ANSWERS]}
    )
    args = RewardConfig(
        str(folder),
        max_steps=4,
        learning_rate=0.02,
        per_device_train_batch_size=4,
        report_to="none",
        bf16=False,
        **options,
    )
    config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    trainer = RewardTrainer(base, args, train_dataset=pairs, processing_class=tokenizer, peft_config=config)
    trainer.train()
    trainer.save_model(str(folder / "judge"))
    return str(folder / "judge")


def by_transformers(base: str, folder: str, texts: list[str]) -> list[float]:
    """Scores of transformers' own classifier, set up as in training and given one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = PeftModelForSequenceClassification.from_pretrained(plain, folder).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]


def ended(texts: list[str], eos: str = "<eos>") -> list[str]:
    return [text if text.endswith(eos) else text + eos for text in texts]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("pad", ["eos", "own"])
def test_adapters_are_read_where_training_read(arch, pad, tmp_path):
    tokenizer = tokenizer_without_pad() if pad == "eos" else tiny_tokenizer()
    causal = tiny_causal_lm(arch)
    causal.config.pad_token_id = None if pad == "eos" else PAD_ID
    base = save_tiny(tmp_path / "base", causal, tokenizer)
    folder = train(base, tmp_path, AutoTokenizer.from_pretrained(base))
    expected = by_transformers(base, folder, ended([p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)]))
    assert len({round(score, 3) for score in expected}) > 6
    [member] = load_reward_ensemble(base, [folder])
    policy = build_actor_critic(base, peft_config=LoraConfig(r=2, task_type="CAUSAL_LM"), reward_adapters=[folder])
    for model in (member, policy.reward_models[0]):
        reward = PreferenceReward(model, append_eos=True, batch_size=3)
        assert reward(PROMPTS, ANSWERS) == pytest.approx(expected, abs=1e-5)


def test_without_a_tokenizer_beside_it_that_of_the_base_tells_the_padding(tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm(), tokenizer_without_pad())
    folder = train(base, tmp_path, AutoTokenizer.from_pretrained(base))
    expected = by_transformers(base, folder, ended([p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)]))
    for file in Path(folder).glob("*token*"):
        file.unlink()
    reward = PreferenceReward(load_reward_ensemble(base, [folder])[0], append_eos=True)
    assert reward(PROMPTS, ANSWERS) == pytest.approx(expected, abs=1e-5)
    for file in Path(base).glob("*token*"):
        file.unlink()
    with pytest.warns(UserWarning, match="no tokenizer beside it, and none is found for its base"):
        load_reward_ensemble(base, [folder])


def test_a_text_of_nothing_but_padding_is_read_at_its_first_token(tmp_path):
    base = save_tiny(tmp_path / "base", tiny_causal_lm(), tokenizer_without_pad())
    folder = train(base, tmp_path, AutoTokenizer.from_pretrained(base))
    expected = by_transformers(base, folder, ["<eos>", "<eos><eos>", "a<eos>"])
    reward = PreferenceReward(load_reward_ensemble(base, [folder])[0], append_eos=True)
    assert reward(["", "<eos>", "a"], ["", "<eos>", ""]) == pytest.approx(expected, abs=1e-5)
