# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Preference pairs in their published formats, and what becomes of bad and of long ones."""

import pytest
from datasets import Dataset

from tests.tiny_models import tiny_tokenizer
from trl_ext.instructions.preferences import convert_preferences, dialogue_text, keep_last_turns, parse_dialogue

HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Help?\n\nAssistant: Sure.\n\nTwo paragraphs.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Help?\n\nAssistant: No.",
}
USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5"))
)
ULTRA = {"prompt": "2+2?", "chosen": [USER, YES], "rejected": [USER, NO], "margin": 1.5}


def converted(row, chat):
    return convert_preferences(Dataset.from_list([row]), "pairs", chat=chat)[0]


def test_hh_dialogues_as_text_are_split_before_the_last_answer():
    row = converted(HH, chat=False)
    assert row["prompt"] == "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Help?\n\nAssistant:"
    assert row["prompt"] + row["chosen"] == HH["chosen"] and row["prompt"] + row["rejected"] == HH["rejected"]


def test_hh_dialogues_become_conversations():
    row = converted(HH, chat=True)
    assert [m["role"] for m in row["prompt"]] == ["user", "assistant", "user"]
    assert row["chosen"] == [{"role": "assistant", "content": "Sure.\n\nTwo paragraphs."}]


def test_ultrafeedback_keeps_its_margin_and_loses_the_repeated_prompt():
    assert converted(ULTRA, chat=True) == {"prompt": [USER], "chosen": [YES], "rejected": [NO], "margin": 1.5}
    as_text = converted(ULTRA, chat=False)
    assert as_text["prompt"] == "\n\nHuman: 2+2?\n\nAssistant:" and as_text["chosen"] == " 4"


@pytest.mark.parametrize("prompt", ["2+2?", [USER]])
def test_an_explicit_prompt_and_answers_alone(prompt):
    row = converted({"prompt": prompt, "chosen": [YES], "rejected": [NO]}, chat=True)
    assert row == {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
    texts = {"prompt": "list:\n", "chosen": "a", "rejected": "b"}
    assert converted(texts, chat=False) == texts
    assert converted(texts, chat=True)["prompt"] == [{"role": "user", "content": "list:\n"}]


def test_dialogues_survive_the_way_there_and_back():
    assert dialogue_text(parse_dialogue(HH["chosen"])) == HH["chosen"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"chosen": ""}, "has no 'chosen' side"),
        ({"rejected": None}, "has no 'rejected' side"),
        ({"rejected": HH["chosen"]}, "identical"),
        ({"rejected": "\n\nHuman: Other?\n\nAssistant: No."}, "different prompts"),
        ({"chosen": "Sure."}, "neither a dialogue"),
        ({"chosen": "\n\nHuman: Hi"}, "does not end with an answer"),
    ],
)
def test_bad_pairs_are_named_or_left_out(change, part, capsys):
    rows = Dataset.from_list([HH, HH | change, HH | change])
    named = (
        rf"2 of 3 rows of the preference data 'pairs' cannot be used \(the first: row 2 .*{part}.*\); mend such rows"
    )
    with pytest.raises(ValueError, match=named):
        convert_preferences(rows, "pairs", chat=False)
    assert len(convert_preferences(rows, "pairs", chat=False, skip_bad=True)) == 1
    assert "2 of 3 rows of the preference data 'pairs' are left out (the first: row 2 " in capsys.readouterr().out


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="no column 'rejected'"):
        convert_preferences(Dataset.from_list([{"chosen": "a"}]), "pairs", chat=False)


# ---- long dialogues ----

TURNS = ["one two", "three", "four five six", "seven", "eight?"]
DIALOGUE = dialogue_text(
    {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 3, [*TURNS, "yes"], strict=True)
)


def shortened(row, max_length: int, *, chat: bool):
    pairs = Dataset.from_list([row])
    tokenizer = tiny_tokenizer(chat_template=chat)
    return keep_last_turns(convert_preferences(pairs, "pairs", chat=chat), tokenizer, max_length)[0], tokenizer


@pytest.mark.parametrize("chat", [False, True])
def test_a_dialogue_loses_as_many_first_turns_as_it_must(chat):
    """The limit one token below what a number of turns takes costs one turn more."""
    row = {"chosen": DIALOGUE, "rejected": DIALOGUE.removesuffix("yes") + "no, no, no"}
    whole, tokenizer = shortened(row, 10_000, chat=chat)
    prompts = [whole["prompt"]]
    for first in (2, 4):
        messages = [
            {"role": role, "content": text}
            for role, text in list(zip(["user", "assistant", "user", "assistant", "user"], TURNS, strict=True))[first:]
        ]
        prompts.append(messages if chat else dialogue_text(messages) + "\n\nAssistant:")
    rest = whole["rejected"]
    for i, prompt in enumerate(prompts):
        if chat:
            length = len(tokenizer.apply_chat_template(prompt + rest, return_dict=True)["input_ids"])
        else:
            length = len(tokenizer(prompt + rest)["input_ids"]) + 1  # with the token that ends it
        assert shortened(row, length, chat=chat)[0]["prompt"] == prompt
        # Too long even with its last question alone: as it was, so that whoever trains can leave it out.
        following = prompts[i + 1] if i + 1 < len(prompts) else prompts[0]
        assert shortened(row, length - 1, chat=chat)[0] == whole | {"prompt": following}


def test_a_system_message_stays_and_the_number_is_printed(capsys):
    system = {"role": "system", "content": "be short"}
    asked = [{"role": "user", "content": "b"}]
    long = [{"role": "user", "content": "a " * 50}, {"role": "assistant", "content": "c"}]
    row = {"prompt": [system, *long, *asked], "chosen": [YES], "rejected": [NO]}
    assert shortened(row, 60, chat=True)[0]["prompt"] == [system, *asked]
    assert "1 of 1 dialogues lost their first turns: they had more than 60 tokens" in capsys.readouterr().out
    shortened(row, 10_000, chat=True)
    assert not capsys.readouterr().out
