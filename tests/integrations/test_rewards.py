# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions move between TRL's trainers and ours as they are."""

from pathlib import Path
from typing import Any

import pytest
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

from tests import scripted
from tests.integrations.online import trainer, training_logs
from tests.tiny_models import prompt_dataset, tiny_classifier, tiny_tokenizer
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.integrations import require_numbers
from trl_ext.rewards import LengthReward, RunningNormalization, SentenceReward, Summed, ToxicityReward, WeightedSum


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_ours_run_in_trls_trainers(kind: str, tmp_path: Path) -> None:
    toxicity = ToxicityReward(tiny_classifier(), tokenizer=tiny_tokenizer())
    length = LengthReward(3)
    seen: list[Any] = []

    def watched(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        """Sees what the others see; they are called again with it below."""
        seen.append((prompts, completions, completion_ids))
        return [0.0] * len(completions)

    ours = [toxicity, length, WeightedSum([toxicity, length], [1.0, 0.5], name="both"), RunningNormalization(length)]
    made = trainer(kind, tmp_path, reward_funcs=[*ours, watched], reward_weights=[1.0, 0.5, 1.0, 1.0, 0.0])
    made.train()
    lines = training_logs(made)
    assert len(lines) == len(seen) == 2
    for line, sample in zip(lines, seen, strict=True):
        arguments = dict(zip(("prompts", "completions", "completion_ids"), sample, strict=True))
        means = {fn.__name__: sum(fn(**arguments)) / 4 for fn in (toxicity, length)}
        assert line["rewards/non_toxicity/mean"] == pytest.approx(means["non_toxicity"], rel=1e-4)
        assert line["rewards/length/mean"] == pytest.approx(means["length"], rel=1e-4)
        assert line["rewards/both/mean"] == pytest.approx(means["non_toxicity"] + 0.5 * means["length"], rel=1e-4)
    assert lines[0]["rewards/length/mean"] != lines[0]["rewards/normalized_length/mean"]


def by_token(completions: Any, completion_ids: Any, **columns: Any) -> list[list[float]]:
    return [[1.0] * len(ids) for ids in completion_ids]


async def by_token_later(completions: Any, completion_ids: Any, **columns: Any) -> list[list[float]]:
    return by_token(completions, completion_ids)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("reward", [by_token, by_token_later], ids=["plain", "async"])
def test_token_rewards_are_refused_by_name_at_the_first_call(kind: str, reward: Any, tmp_path: Path) -> None:
    made = trainer(kind, tmp_path, reward_funcs=[LengthReward(3), reward])
    require_numbers(made)
    with pytest.raises(TypeError, match=f"'{reward.__name__}' gives token rewards, and {type(made).__name__} takes"):
        made.train()


def test_rewards_that_are_known_to_give_token_rewards_are_refused_before_training(tmp_path: Path) -> None:
    sentences = SentenceReward(LengthReward(3), tiny_tokenizer())
    made = trainer("grpo", tmp_path, reward_funcs=sentences)
    with pytest.raises(TypeError, match="'sentences_length' gives token rewards, and GRPOTrainer takes one number"):
        require_numbers(made)
    # Without our callback the reward itself says so, and its sum is fine.
    with pytest.raises(TypeError, match="'sentences_length' gives token rewards, and TRL's trainer takes one number"):
        made.train()
    summed = trainer("grpo", tmp_path, reward_funcs=Summed(WeightedSum([sentences, by_token])))
    require_numbers(summed)
    summed.train()
    assert "rewards/summed_weighted_sum/mean" in training_logs(summed)[0]


def test_rewards_that_can_be_read_once_reach_the_trainer(tmp_path: Path) -> None:
    def counted(completions: list[str], **columns: Any) -> Any:
        return (float(len(text)) for text in completions)

    logged = []
    for checked in (False, True):
        made = trainer("grpo", tmp_path / str(checked), reward_funcs=counted)
        if checked:
            require_numbers(made)
        made.train()
        logged.append([line["reward"] for line in training_logs(made)])
    assert logged[0] == logged[1] and logged[0][0] > 0


def test_trls_run_in_ours(tmp_path: Path) -> None:
    """`trl.rewards` on a conversational dataset, against calls by hand on the completions that the engine is known to
    make.
    """
    dataset, tokenizer = prompt_dataset(16, conversational=True), tiny_tokenizer()
    theirs = [think_format_reward, get_soft_overlong_punishment(6, 4), get_repetition_penalty_reward(2, -1.0)]
    made = scripted.trainer(
        tmp_path,
        reward_funcs=theirs,
        train_dataset=dataset,
        processing_class=tokenizer,
        shuffle_dataset=False,
        num_ppo_epochs=1,
    )
    made.train()
    lines = scripted.logs(made)
    assert len(lines) == 2
    names = [f"rewards/{name}/mean" for name in made.rewards.names]
    assert names[0] == "rewards/think_format_reward/mean"
    for i, line in enumerate(lines):
        prompt_ids = tokenize_prompts(dataset[8 * i : 8 * i + 8]["prompt"], tokenizer)
        ids = scripted.ScriptedEngine()(None, prompt_ids).ids
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        expected = [sum(fn(completions=completions, completion_ids=ids)) / 8 for fn in theirs]
        assert [line[name] for name in names] == pytest.approx(expected)
        assert expected[1] < 0, "some completions are longer than the limit"
