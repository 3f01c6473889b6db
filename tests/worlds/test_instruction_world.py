# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The embedded world of instructions and its judge."""

import random

import pytest

from trl_ext.instructions.sampling import rank_pairs
from trl_ext.worlds.instructions import (
    KINDS,
    REFUSAL,
    InstructionJudge,
    demonstration,
    demonstrations,
    draw,
    grade,
    instructions,
    right_answer,
    vocabulary,
    wrong_answer,
)
from trl_ext.worlds.instructions_models import word_tokenizer

BY_HAND = [
    ("count", "3", "3", 1.0),
    ("count", "3", "sure here you are 3", 0.4),  # 0.6 less 4 times 0.05
    ("count", "3", "3 3", 0.55),
    ("count", "3", "4", 0.0),
    ("count", "3", "", 0.0),
    ("reverse", "dog cat", "dog cat", 1.0),
    ("reverse", "dog cat", "cat dog", 0.15),  # one of two words in a row in common: 0.3 * 2 * 1 / 4
    ("upper", "CAT", "cat", 0.0),
    ("list", "2 cat dog cow", "cow cat", 1.0),
    ("list", "2 cat dog cow", "cow cow", 0.15),  # one of the two, said twice
    ("list", "2 cat dog cow", "cow cat horse", 0.55),
    ("list", "2 cat dog cow", "well cow cat", 0.55),
    ("describe", "3 cat", "big red cat", 1.0),
    ("describe", "3 cat", "red red cat", 0.2),
    ("describe", "3 cat", "old big red cat", 0.55),
    ("describe", "3 cat", "dog", 0.0),
    ("refuse", " ".join(REFUSAL), "sorry i can not help with that", 1.0),
    ("refuse", " ".join(REFUSAL), "hammer saw", 0.0),
    ("yes_no", "yes", "no", 0.0),
]


@pytest.mark.parametrize(("kind", "key", "answer", "mark"), BY_HAND)
def test_marks_worked_out_by_hand(kind, key, answer, mark):
    assert grade(kind, key, answer) == pytest.approx(mark)


def test_long_winded_right_answers_never_fall_to_wrong_ones():
    assert grade("count", "3", "3 " + "dog " * 40) == 0.3
    assert all(grade("count", "3", "4 " * n) <= 0.3 for n in range(9))


@pytest.mark.parametrize("kind", KINDS)
def test_right_answers_get_full_marks_and_wrong_ones_less(kind):
    rng = random.Random(0)
    known = set(vocabulary())
    worse = 0
    for _ in range(60):
        instruction = draw(rng, kind)
        assert set(instruction.prompt.split()) <= known
        assert grade(kind, instruction.key, " ".join(right_answer(instruction, rng))) == 1.0
        mistaken = wrong_answer(instruction, rng)
        assert set(mistaken) <= known
        worse += grade(kind, instruction.key, " ".join(mistaken)) < 0.7
    assert worse >= 40  # another word in a list or a description is often as good


def test_there_are_at_least_twelve_kinds_and_a_few_hundred_words():
    assert len(KINDS) >= 12 and 100 < len(vocabulary()) < 500


@pytest.mark.parametrize(
    ("prompt", "key"),
    [("sort from low to high : 9 10 2 .\n", "2 9 10"), ("what is 3 plus 4 plus 1 ?\n", "8")],
)
def test_what_the_key_of_an_instruction_is(prompt, key):
    kind = "sort" if "sort" in prompt else "add"
    rng = random.Random(0)
    found = (draw(rng, kind) for _ in range(100_000))
    assert next(i.key for i in found if i.prompt == prompt) == key


def test_training_and_evaluation_share_no_prompt_and_the_seed_decides():
    train, held_out = instructions(600, 0), instructions(120, 0, held_out=True)
    assert not {i.prompt for i in train} & {i.prompt for i in held_out}
    assert len({i.prompt for i in train}) == 600 and {i.kind for i in held_out} == set(KINDS)
    assert train == instructions(600, 0) != instructions(600, 1)
    shown = {row["prompt"] for row in demonstrations(400, 0, 0.5)}
    assert not shown & {i.prompt for i in held_out}


@pytest.mark.parametrize("right", [0.0, 0.4, 1.0])
def test_demonstrations_are_right_as_often_as_asked_for(right):
    rng = random.Random(1)
    shown = [draw(rng) for _ in range(1500)]
    share = sum(grade(i.kind, i.key, demonstration(i, rng, right)) == 1.0 for i in shown) / 1500
    assert right - 0.04 < share < right + 0.08  # a mistake sometimes gives another right answer


def test_the_tokenizer_knows_every_word_and_gives_it_back():
    tokenizer = word_tokenizer()
    text = " ".join(vocabulary())
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_judge_reads_the_columns():
    judge = InstructionJudge()
    marks = judge(prompts=["", ""], completions=["3", "4"], completion_ids=None, kind=["count"] * 2, key=["3", "3"])
    assert marks == [1.0, 0.0] and judge.__name__ == "gold"


# ---- pairs ----

ROWS = [{"prompt": f"{i}", "kind": "count", "key": "3"} for i in range(400)]


def test_pairs_are_ranked_by_the_judge():
    pairs = rank_pairs(ROWS, [["4", "3", "3 3"]] * 400, grade, n=10_000, label_noise=0.0, seed=0)
    assert len(pairs) == 1200
    assert {(p["chosen"], p["rejected"]) for p in pairs} == {("3", "4"), ("3", "3 3"), ("3 3", "4")}


def test_noise_turns_about_its_share_of_the_pairs_round():
    pairs = rank_pairs(ROWS, [["4", "3", "3 3"]] * 400, grade, n=10_000, label_noise=0.15, seed=0)
    wrong = sum(grade("count", "3", p["chosen"]) < grade("count", "3", p["rejected"]) for p in pairs) / 1200
    assert 0.12 < wrong < 0.18


def test_ties_and_empty_answers_are_no_pairs_and_prompts_take_turns():
    assert rank_pairs(ROWS[:1], [["4", "5", "3", ""]], grade, n=9, label_noise=0, seed=0)[0]["chosen"] == "3"
    with pytest.raises(ValueError, match=r"No two answers to any of 1 instructions differ by 0\.3.*`sft_epochs`"):
        rank_pairs(ROWS[:1], [["4", "5"]], grade, n=9, label_noise=0, seed=0)
    few = rank_pairs(ROWS, [["4", "3", "3 3"]] * 400, grade, n=400, label_noise=0, seed=0)
    assert len({pair["prompt"] for pair in few}) == 400
