# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Scores of words and sentences on the tokens that end them, with real tokenizers."""

import re
from typing import Any

import pytest

from tests.real_tokenizers import EXACT, real_tokenizer
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.rewards import RewardRunner, SentenceReward, check_reward, spread_spans
from trl_ext.rewards.base import RewardValueError
from trl_ext.rewards.spans import token_ends
from trl_ext.text.decoding import as_completions, decode_alone, decode_answers
from trl_ext.text.sentences import sentence_ends

TEXT = " A kind word, isn't it? Größe 3.5 猫が好き。 And 👍🏽 ends it!"
CONVERSATIONAL = ("mistral v1", "llama", "mistral", "phi3", "gemma2", "gemma3", "qwen2", "qwen3", "deepseek_v3")


def tokens_of(name: str, text: str) -> tuple[Any, list[int]]:
    tokenizer = real_tokenizer(name)
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a" + text, add_special_tokens=False)["input_ids"]
    return tokenizer, whole[len(before) :]


@pytest.mark.parametrize("name", EXACT)
def test_each_word_is_earned_by_the_first_token_that_completes_it(name: str) -> None:
    tokenizer, ids = tokens_of(name, TEXT)
    ids = [*ids, tokenizer.eos_token_id]
    text = decode_alone(tokenizer, ids)
    spans = [(*word.span(), 2.0**-i) for i, word in enumerate(re.finditer(r"\S+", text))]
    rewards = spread_spans(spans, text, ids, tokenizer)
    assert len(rewards) == len(ids) and rewards[-1] == 0 and sum(rewards) == sum(score for *_, score in spans)
    for start, end, score in spans:  # one by one, against decodings of beginnings
        alone = spread_spans([(start, end, score)], text, ids, tokenizer)
        (place,) = [i for i, reward in enumerate(alone) if reward]
        assert decode_alone(tokenizer, ids[: place + 1]).startswith(text[:end])
        assert not decode_alone(tokenizer, ids[:place]).startswith(text[:end])


def test_a_token_that_ends_two_spans_earns_both() -> None:
    tokenizer, ids = tokens_of("qwen", " wow!!")
    assert [tokenizer.decode(i) for i in ids] == [" wow", "!!"]
    assert spread_spans([(0, 5, 1.0), (5, 6, 0.5), (0, 3, 0.25)], " wow!!", ids, tokenizer) == [0.25, 1.5]


def test_a_character_of_several_tokens_is_complete_with_the_last() -> None:
    tokenizer, ids = tokens_of("mistral v1", " 🦥x")
    assert len(ids) > 4
    ends = token_ends(" 🦥x", ids, tokenizer)
    assert ends[-2:] == [2, 3] and max(ends[:-2]) <= 1


@pytest.mark.parametrize("name", CONVERSATIONAL)
@pytest.mark.parametrize("conversational", [False, True])
def test_texts_as_the_trainer_decodes_them(name: str, conversational: bool) -> None:
    """Behind a prompt, without the space that some templates write, with and without the token that ends a turn."""
    tokenizer, ids = tokens_of(name, " Fine words. More words!")
    prompt: Any = [{"role": "user", "content": "Say it"}] if conversational else "Say it"
    for sampled in (ids, [*ids, tokenizer.eos_token_id]):
        prompt_ids = tokenize_prompts([prompt], tokenizer)
        (text,) = decode_answers(tokenizer, [prompt], prompt_ids, [sampled])
        words = [(*word.span(), 1.0) for word in re.finditer(r"\w+", text)]
        rewards = spread_spans(words, text, sampled, tokenizer)
        assert len(words) == 4 and sum(rewards) == 4.0
        reward = SentenceReward(length, tokenizer)
        (spread,) = reward([prompt], as_completions([prompt], [text]), [sampled])
        assert sum(spread) == len(text.split()) == 4
        assert [value for value in spread if value] == [2.0, 2.0]


def test_spans_and_texts_that_do_not_fit_are_refused() -> None:
    tokenizer, ids = tokens_of("qwen", " wow")
    for span in ((0, 0, 1.0), (2, 1, 1.0), (-1, 2, 1.0), (0, 5, 1.0)):
        with pytest.raises(ValueError, match="is empty or outside of the text, which has 4 characters"):
            spread_spans([span], " wow", ids, tokenizer)
    with pytest.raises(ValueError, match="give the tokenizer of the policy"):
        spread_spans([(0, 3, 1.0)], "other", ids, tokenizer)
    assert (
        spread_spans([], "", [tokenizer.eos_token_id], tokenizer) == [0.0] and spread_spans([], "", [], tokenizer) == []
    )


# ---- sentences ----


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three", ["One.", " Two!", " Three"]),
        ('It costs 3.5 euros... "Really?" Yes.\n', ["It costs 3.5 euros...", ' "Really?"', " Yes.\n"]),
        ("猫が好き。犬も？はい", ["猫が好き。", "犬も？", "はい"]),
        ("- a\n- b\n\n", ["- a\n", "- b\n\n"]),
        ("?!", ["?!"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentence_ends(text: str, sentences: list[str]) -> None:
    ends = sentence_ends(text)
    assert [text[start:end] for start, end in zip([0, *ends], ends, strict=False)] == sentences


def length(completions: list[Any], **columns: Any) -> list[float]:
    """Number of words; of a conversation those of its message."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [float(len(text.split())) for text in texts]


def rude(prompts: list[str], completions: list[str], completion_ids: list[list[int]], mood: list[str], **columns: Any):
    assert len(prompts) == len(completions) == len(completion_ids) == len(mood)
    return [None if text.endswith((" day.", "fool. fool.")) else -1.0 * text.count("fool") for text in completions]


def test_sentences_earn_differences_and_their_sum_is_the_whole() -> None:
    texts = [" You fool. Nice day. Is it? fool", " Fine", "", " fool. fool."]
    pairs = [tokens_of("qwen", text) for text in texts]
    tokenizer, ids = pairs[0][0], [[*row, pairs[0][0].eos_token_id] for _, row in pairs]
    reward = SentenceReward(rude, tokenizer)
    got = reward(["p"] * 4, texts, ids, mood=["m"] * 4)
    # The beginning with two sentences has no score: the third sentence earns the change of both.
    assert [value for value in got[0] if value] == [-1.0, -1.0]
    assert got[0][ids[0].index(tokenizer.encode(".")[0])] == -1.0 and got[0][-2] == -1.0 and got[0][-1] == 0.0
    assert got[1:] == [[0.0] * len(ids[1]), 0.0, None]
    scores = RewardRunner(reward)(["p"] * 4, texts, ids, {"mood": ["m"] * 4})
    assert scores.total.tolist() == [-2.0, 0.0, 0.0, 0.0] and scores.valid.tolist() == [True, True, True, False]


def test_sentence_rewards_are_checked_with_the_tokens_of_their_tokenizer() -> None:
    report = check_reward(SentenceReward(length, real_tokenizer("qwen")))
    assert report.formats == ("plain", "conversational") and isinstance(report.values[0], list) and not report.warnings
    bad = SentenceReward(length, real_tokenizer("qwen"), ends=lambda text: [1, 1, len(text)])
    with pytest.raises(RewardValueError, match="return ascending positions, the last one at the text's end"):
        check_reward(bad)


@pytest.mark.parametrize("name", EXACT)
def test_beginnings_that_end_inside_a_character_are_spread_without_it(name: str) -> None:
    tokenizer, ids = tokens_of(name, " So kind. And 👍🏽 ends it!")
    reward = SentenceReward(lambda completions: [float(len(text)) for text in completions], tokenizer)
    unfinished = 0
    for n in range(1, len(ids) + 1):
        decoded = decode_alone(tokenizer, ids[:n])
        text = decoded.rstrip("\ufffd")  # as `RewardsSoFar` shows it
        unfinished += text != decoded
        (rewards,) = reward(["p"], [text], [ids[:n]])
        assert (sum(rewards) if isinstance(rewards, list) else rewards) == len(text)
    assert unfinished or name != "qwen2"
