# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
import pickle
import re

import pytest
from trl.rewards import get_repetition_penalty_reward

from trl_ext.rewards import KeywordReward, LengthReward, RegexReward, RepetitionReward, SentenceEndReward


def score(reward, *completions):
    ids = [list(range(len(completion))) for completion in completions]
    return reward([""] * len(completions), list(completions), ids)


def score_ids(reward, *ids):
    return reward([""] * len(ids), [""] * len(ids), [list(row) for row in ids])


def test_short_completions_are_penalized():
    reward = LengthReward(8)
    lengths = [0, 2, 4, 8, 100]
    assert score_ids(reward, *(range(n) for n in lengths)) == [-1.0, -0.75, -0.5, 0.0, 0.0]


def test_length_ramps_on_both_sides():
    reward = LengthReward(4, 6, inside=1.0, outside=-1.0, ramp=4)
    lengths = [0, 2, 3, 4, 6, 7, 8, 10, 50]
    assert score_ids(reward, *(range(n) for n in lengths)) == [-1.0, 0.0, 0.5, 1.0, 1.0, 0.5, 0.0, -1.0, -1.0]
    assert score_ids(LengthReward(high=4), range(4), range(6), range(8), range(9)) == [0.0, -0.5, -1.0, -1.0]
    assert score_ids(LengthReward(4, ramp=0), range(3), range(4)) == [-1.0, 0.0]


def test_length_units_and_ignored_ids():
    assert score(LengthReward(4, unit="words"), "one two", "今天天气很好") == [-0.5, -0.75]
    assert score(LengthReward(6, unit="characters"), "今天天气很好", "今天天") == [0.0, -0.5]
    assert score_ids(LengthReward(2, ignore_ids=[0, 9]), [0, 1, 9], [0, 9], [1, 2]) == [-0.5, -1.0, 0.0]
    assert score(LengthReward(2, unit="words"), [{"role": "assistant", "content": "one"}]) == [-0.5]


def test_length_needs_ids_to_count_tokens():
    with pytest.raises(ValueError, match="completion_ids"):
        LengthReward(4)(["p"], ["c"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 5, "high": 4}, "5 to 4"),
        ({"low": -1}, "-1 to None"),
        ({"ramp": -1}, "ramp=-1"),
        ({"unit": "letters"}, "'letters'"),
    ],
)
def test_length_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LengthReward(**options)


def test_repetition_by_hand_and_like_trl():
    # bigrams of 5 5 5 5 5: four, of which one is distinct; penalty 1 - 1/4
    rows = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [7], [], [1, 2, 1, 2, 1, 2]]
    reward = RepetitionReward(2, max_penalty=-2.0)
    assert score_ids(reward, *rows) == pytest.approx([0.0, -1.5, 0.0, 0.0, -1.2])
    assert score_ids(reward, *rows) == pytest.approx(get_repetition_penalty_reward(2, -2.0)(completion_ids=rows))


def test_repetition_in_words_and_characters():
    assert score(RepetitionReward(1, unit="words"), "No no NO yes", "a b") == [-0.5, 0.0]
    # 哈哈哈哈 has three bigrams, one distinct
    assert score(RepetitionReward(2, unit="characters"), "哈哈哈哈", "今天好") == pytest.approx([-2 / 3, 0.0])


def test_repetition_options_are_checked():
    for options in ({"n": 0}, {"max_penalty": 0.5}, {"unit": "x"}):
        with pytest.raises(ValueError, match=str(next(iter(options.values())))):
            RepetitionReward(**options)


def test_keywords():
    penalty = KeywordReward(["ass", "bad day"], hit=-1.0, max_hits=3)
    texts = ["a class act", "you ASS", "ass, ass! Bad day. ass", "", "fine"]
    assert score(penalty, *texts) == [0.0, -1.0, -3.0, 0.0, 0.0]
    assert score(KeywordReward(["ass"], whole_words=False, miss=-0.5), "a class act", "x") == [1.0, -0.5]
    assert score(KeywordReward("Ja", ignore_case=False), "ja", "Ja") == [0.0, 1.0]
    assert score(KeywordReward(["坏"], whole_words=False), "很坏的", "好") == [1.0, 0.0]
    assert score(KeywordReward(["a.b"]), "a.b", "axb") == [1.0, 0.0]
    assert score(KeywordReward(["ab", "abab"], whole_words=False, max_hits=9), "abab", "ab ab") == [1.0, 2.0]


def test_regex():
    assert score(RegexReward(r"\d+", hit=0.5, max_hits=2, miss=-1.0), "1 2 3", "1", "none") == [1.0, 0.5, -1.0]
    assert score(RegexReward("^a", flags=re.IGNORECASE), "ABC") == [1.0]
    assert score(RegexReward(re.compile("b", re.IGNORECASE)), "ABC") == [1.0]
    for build in (lambda: RegexReward("("), lambda: KeywordReward([]), lambda: KeywordReward(["a", ""])):
        with pytest.raises(ValueError, match="does not compile|at least one"):
            build()
    with pytest.raises(ValueError, match="max_hits=0"):
        RegexReward("a", max_hits=0)


@pytest.mark.parametrize("text", ["It is.", "Really?", "今天好。", "क्या।", "هل؟", 'He said "no."', "It costs 3.5! Yes"])
def test_a_sentence_ends_in_any_language(text):
    assert score(SentenceEndReward(), text) == [0.0]


@pytest.mark.parametrize("text", ["", "no end", "costs 3.5 now", "see example.com for", "你好，"])
def test_no_sentence_ends(text):
    assert score(SentenceEndReward(-2.0), text) == [-2.0]


def test_sentence_end_within_a_window():
    reward = SentenceEndReward(start=4, end=8)
    assert score(reward, "abc. efgh", "abcd. fgh", "abcdefg. i", "abcdefgh. ", "abcdefg.5") == [-1, 0, 0, -1, -1]
    assert score(SentenceEndReward(terminators="\n"), "a\nb", "a b") == [0.0, -1.0]


def test_sentence_end_in_a_window_of_tokens(no_pad_tokenizer):
    no_pad_tokenizer.add_tokens(["."])
    a, stop = no_pad_tokenizer.convert_tokens_to_ids(["a", "."])
    reward = SentenceEndReward(start=2, end=4, unit="tokens", tokenizer=no_pad_tokenizer)
    rows = [[a, stop, a, a], [a, a, stop, a], [a, a, a, stop], [a, a, a, a, stop], []]
    assert score_ids(reward, *rows) == [-1.0, 0.0, 0.0, -1.0, -1.0]
    with pytest.raises(ValueError, match="pass `tokenizer`"):
        SentenceEndReward(unit="tokens")
    with pytest.raises(ValueError, match="4 to 4"):
        SentenceEndReward(start=4, end=4)


@pytest.mark.parametrize(
    "reward",
    [LengthReward(3), RepetitionReward(1), KeywordReward(["ab"]), RegexReward("a+"), SentenceEndReward()],
    ids=lambda reward: reward.__name__,
)
def test_rules_pickle_and_take_trl_calls(reward):
    texts = ["ab ab", "a.", ""]
    call = {
        "prompts": [""] * 3,
        "completions": texts,
        "completion_ids": [[1, 1], [2], []],
        "some_column": [1, 2, 3],
        "trainer_state": None,
        "log_extra": None,
        "log_metric": None,
    }
    assert pickle.loads(pickle.dumps(reward))(**call) == reward(**call)
    assert reward.__name__ in {"length", "repetition", "keyword", "regex", "sentence_end"}
