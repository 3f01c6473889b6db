# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""PPO-ptx: the texts, their loss, and what it does to a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_ext import PPOConfig, PPOTrainer
from trl_ext.experience.supervised import SupervisedData

TEXTS = ["the cat sat on the mat", "a small dog ran", "you are a kind person and the weather is nice today"]


def data(rows: dict[str, list], **options: Any) -> SupervisedData:
    return SupervisedData(Dataset.from_dict(rows), tiny_tokenizer(), **({"max_length": 64, "seed": 0} | options))


def split(rows: dict[str, list], **options: Any) -> tuple[str, str]:
    """What is given and what is to be predicted, of the only row."""
    tokenizer = tiny_tokenizer()
    batch = data(rows, **options).batch(1, (0,))
    width = batch.completion_mask.shape[1]
    assert batch.attention_mask.all()
    return tokenizer.decode(batch.input_ids[0, :-width]), tokenizer.decode(batch.input_ids[0, -width:])


def test_every_format_of_sft_says_what_is_given_and_what_is_predicted():
    given, predicted = split({"text": ["the cat sat"]})
    assert given + predicted == "the cat sat<eos>" and tiny_tokenizer()(given)["input_ids"] != []
    assert len(tiny_tokenizer()(given)["input_ids"]) == 1, "the first token stands before everything"
    assert split({"prompt": ["the cat"], "completion": [" sat"]}) == ("the cat", " sat<eos>")
    user, assistant = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}
    assert split({"prompt": [[user]], "completion": [[assistant]]}) == ("<user>hello<eos><assistant>", "good day<eos>")
    given, predicted = split({"messages": [[user, assistant]]})
    assert (given, predicted) == ("<user>", "hello<eos><assistant>good day<eos>")


def test_long_texts_lose_their_end():
    batch = data({"text": ["the cat sat on the mat and looked"]}, max_length=5).batch(1, (0,))
    assert batch.input_ids.shape == (1, 5)
    whole = tiny_tokenizer()("the cat sat on the mat and looked")["input_ids"]
    assert batch.input_ids[0].tolist() == whole[:5]


def test_rows_follow_from_seed_and_key_alone():
    rows = {"text": [f"the cat sat {i}" for i in range(50)]}
    first = data(rows).batch(8, (3, 0)).input_ids
    assert torch.equal(first, data(rows).batch(8, (3, 0)).input_ids)
    for other in (data(rows).batch(8, (4, 0)), data(rows).batch(8, (3, 1)), data(rows, seed=1).batch(8, (3, 0))):
        assert not torch.equal(first, other.input_ids)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"question": ["?"]}, r"has the columns \['question'\]; it needs 'text', 'messages', or 'prompt' and"),
        ({"prompt": ["?"]}, "it needs 'text'"),
        ({"text": []}, "`ptx_dataset` is empty"),
    ],
)
def test_what_cannot_be_used_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        data(rows)


def test_conversations_need_a_chat_template():
    rows = {"messages": [[{"role": "user", "content": "hello"}]]}
    with pytest.raises(ValueError, match="no chat template; give texts"):
        SupervisedData(Dataset.from_dict(rows), tiny_tokenizer(chat_template=False), max_length=8, seed=0)


def train(folder: Path, texts: list[str] | None = TEXTS, **options: Any) -> PPOTrainer:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_ppo_epochs": 2,
        "num_mini_batches": 1,
        "max_completion_length": 6,
        "total_episodes": 16,
        "learning_rate": 0.1,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "ptx_coef": 0.5 if texts else 0.0,
        "temperature": 0.7,
        "use_cpu": True,
    }
    lora = options.pop("lora", False)
    resume = options.pop("resume", None)
    trainer = PPOTrainer(
        tiny_causal_lm(eos_token_id=[2, 7, 9, 11]),
        lambda completion_ids, **columns: [float(sum(ids) % 7) for ids in completion_ids],
        PPOConfig(output_dir=str(folder), **(settings | options)),
        train_dataset=Dataset.from_dict({"prompt": [f"the cat sat {i}" for i in range(8)]}),
        ptx_dataset=Dataset.from_dict({"text": texts}) if texts else None,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4) if lora else None,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_loss_is_the_models_own_language_model_loss(tmp_path):
    """Transformers' mean over predicted tokens, of the first step's texts, at temperature 1 whatever PPO's is."""
    trainer = train(tmp_path, max_steps=1, total_episodes=None)
    logged = trainer.state.log_history[0]["ptx_loss"]
    texts = trainer.supervised.batch(8, (0, 0))
    labels = texts.input_ids.clone()
    labels[:, : -texts.completion_length] = -100
    labels[texts.attention_mask == 0] = -100
    position_ids = (texts.attention_mask.cumsum(-1) - 1).clamp(min=0)
    model = tiny_causal_lm().eval()
    theirs = model(texts.input_ids, attention_mask=texts.attention_mask, position_ids=position_ids, labels=labels)
    assert logged == pytest.approx(float(theirs.loss), abs=1e-5)


def test_the_step_is_the_sum_of_both_gradients(tmp_path):
    """SGD moves by lr * gradient, so the step with texts minus the one without is that of the texts alone."""
    options: dict[str, Any] = {"max_steps": 1, "total_episodes": None}
    both = train(tmp_path / "a", **options).model.causal_lm.state_dict()
    ppo = train(tmp_path / "b", texts=None, **options).model.causal_lm.state_dict()
    model = tiny_causal_lm()
    texts = data({"text": TEXTS}, max_length=512, seed=42).batch(8, (0, 0))
    labels = texts.input_ids.clone()
    labels[:, : -texts.completion_length] = -100
    labels[texts.attention_mask == 0] = -100
    position_ids = (texts.attention_mask.cumsum(-1) - 1).clamp(min=0)
    model.eval()(
        texts.input_ids, attention_mask=texts.attention_mask, position_ids=position_ids, labels=labels
    ).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(both[name] - ppo[name], -0.1 * 0.5 * p.grad, rtol=0, atol=1e-5)


def test_one_large_micro_batch_equals_many_small_ones(tmp_path):
    one = train(tmp_path / "a", per_device_train_batch_size=8, gradient_accumulation_steps=1)
    many = train(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    torch.testing.assert_close(one.model.state_dict(), many.model.state_dict(), rtol=0, atol=1e-5)


def test_the_policy_learns_its_texts_and_forgets_them_without(tmp_path):
    options = {"total_episodes": 320, "optim": "adamw_torch", "learning_rate": 0.003, "logging_steps": 5}
    trainer = train(tmp_path / "with", texts=TEXTS[:1], **options)
    losses = [log["ptx_loss"] for log in trainer.state.log_history if "ptx_loss" in log]
    assert losses[-1] < 0.2 * losses[0]
    without = train(tmp_path / "without", texts=None, **options)
    assert all("ptx_loss" not in log for log in without.state.log_history)


def test_the_critic_does_not_read_the_texts(tmp_path):
    """In the steps of one rollout, which was sampled before there were texts."""
    options: dict[str, Any] = {"max_steps": 2, "total_episodes": None, "lora": True, "critic": "adapter"}
    a = dict(train(tmp_path / "a", texts=TEXTS[:1], **options).model.critic_parameters())
    b = dict(train(tmp_path / "b", texts=TEXTS[1:2], **options).model.critic_parameters())
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupted_run_goes_on_with_the_same_texts(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    whole = train(tmp_path / "a", **options)
    again = train(tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-1"), **options)
    for (name, p), (_, q) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize(("texts", "coef"), [(None, 0.5), (TEXTS, 0.0)])
def test_texts_and_their_weight_come_together(texts, coef, tmp_path):
    with pytest.raises(ValueError, match=r"`ptx_coef` is .* and `ptx_dataset` is (missing|given); PPO-ptx needs both"):
        train(tmp_path, texts=texts, ptx_coef=coef)


def test_the_weight_is_not_negative(tmp_path):
    with pytest.raises(ValueError, match="`ptx_coef` must be 0 or more"):
        PPOConfig(output_dir=str(tmp_path), ptx_coef=-1.0)
