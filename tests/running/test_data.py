# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Every form in which prompts arrive, and what is said about those that cannot be used."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_ext.running.data import (
    cut_prompts,
    load_prompts,
    looks_like_path,
    rename_prompts,
    split_prompts,
    wrap_in_conversation,
)

TEXTS = ["you are", "what a day", "look at"]
REAL_TOXICITY = [
    {"prompt": {"text": "you are", "toxicity": 0.9}, "continuation": {"text": " a fool", "toxicity": 0.8}},
    {"prompt": {"text": "what a day", "toxicity": 0.1}, "continuation": {"text": " it was", "toxicity": 0.0}},
    {"prompt": {"text": "look at", "toxicity": None}, "continuation": {"text": None, "toxicity": None}},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Parsed files are cached by the datasets library; keep that out of the user's home."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_as(form, tmp_path):
    dataset = Dataset.from_dict({"prompt": TEXTS})
    path = tmp_path / f"data.{form}"
    if form == "jsonl":
        dataset.to_json(path)
    elif form == "json":
        path.write_text(json.dumps([{"prompt": text} for text in TEXTS]))
    elif form == "parquet":
        dataset.to_parquet(path)
    elif form == "csv":
        dataset.to_csv(path)
    elif form == "tsv":
        dataset.to_csv(path, sep="\t")
    elif form.endswith(".gz"):
        path.write_bytes(gzip.compress(Path(write_as(form.removesuffix(".gz"), tmp_path)).read_bytes()))
    elif form == "txt":
        path.write_text("\n".join(TEXTS) + "\n")
    elif form == "saved":
        dataset.save_to_disk(path)
    elif form == "saved_dict":
        DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(path)
    else:
        path.mkdir()
        dataset.to_parquet(path / "train.parquet")
    return str(path)


@pytest.mark.parametrize(
    "form",
    [
        "jsonl",
        "json",
        "parquet",
        "csv",
        "tsv",
        "txt",
        "saved",
        "saved_dict",
        "folder",
        "jsonl.gz",
        "csv.gz",
        "txt.gz",
    ],
)
def test_every_form_gives_the_same_prompts(form, tmp_path):
    dataset = load_prompts(write_as(form, tmp_path))
    assert dataset["prompt"][:] == TEXTS
    assert dataset.column_names == ["prompt"]


def test_split_names_and_slices(tmp_path):
    assert load_prompts(write_as("jsonl", tmp_path), split="validation[:2]")["prompt"][:] == TEXTS[:2]
    saved = write_as("saved_dict", tmp_path)
    assert load_prompts(saved, split="test")["prompt"][:] == TEXTS[:1]
    for split, rows in {
        "train[:2]": [0, 1],
        "train[34%:]": [1, 2],
        "train[-1:]": [2],
        "test+train[1:2]": [0, 1],
    }.items():
        assert load_prompts(saved, split=split)["prompt"][:] == [TEXTS[i] for i in rows], split
    assert load_prompts(write_as("saved", tmp_path / "one"), split="train[1:]")["prompt"][:] == TEXTS[1:]
    with pytest.raises(ValueError, match="no split 'dev'; its splits are train, test"):
        load_prompts(saved, split="dev[:2]")
    with pytest.raises(ValueError, match="'train.:x.' is no split; write 'train'"):
        load_prompts(saved, split="train[:x]")
    with pytest.raises(ValueError, match="split 'train.3:.'. is empty"):
        load_prompts(saved, split="train[3:]")


def test_what_of_a_folder_is_not_read_is_warned_of(tmp_path, recwarn):
    folder = tmp_path / "prompts"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [{"prompt": text} for text in TEXTS])
    (folder / "README.md").write_text("# Prompts")
    assert load_prompts(str(folder))["prompt"][:] == TEXTS
    assert not [w for w in recwarn if "are read, and those that end in" in str(w.message)]
    (folder / "b.csv").write_text("prompt\nhello\n")
    write_jsonl(folder / "c.jsonl", [{"prompt": TEXTS[0]}])
    with pytest.warns(UserWarning, match=r"of the kind 'json' are read, and those that end in \.csv are not; give a"):
        assert len(load_prompts(str(folder))) == len(TEXTS) + 1


def test_real_toxicity_prompts_schema_and_filter(tmp_path):
    name = write_jsonl(tmp_path / "rtp.jsonl", REAL_TOXICITY)
    assert load_prompts(name)["prompt"][:] == TEXTS
    kept = load_prompts(name, min_toxicity=0.3)
    assert kept[:] == {"prompt": ["you are"], "continuation": [" a fool"]}
    with pytest.raises(ValueError, match=r"above 0.95 \(out of 3\); lower `min_prompt_toxicity`"):
        load_prompts(name, min_toxicity=0.95)


def test_conversations_pass_through(tmp_path):
    messages = [{"role": "user", "content": "hello"}]
    name = write_jsonl(tmp_path / "chat.jsonl", [{"question": messages}])
    assert load_prompts(name, column="question")[0] == {"prompt": messages}


def test_conversations_give_their_prompts_and_stay_for_reward_functions(tmp_path):
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]
    name = write_jsonl(tmp_path / "sharegpt.jsonl", [{"conversations": turns, "id": 7}])
    prompt = [{"role": "user", "content": "hello"}]
    assert load_prompts(name)[0] == {"prompt": prompt}
    assert load_prompts(name, keep_columns=True)[0] == {"prompt": prompt, "conversations": turns, "id": 7}
    named = load_prompts(name, column="conversations", keep_columns=True)
    assert named[0] == {"prompt": prompt, "id": 7}
    assert rename_prompts(named, "conversations").column_names == ["id", "conversations"]


def test_where_compares_as_text(tmp_path):
    rows = [{"comment_text": text, "label": label} for text, label in zip(TEXTS, (1, 0, 1), strict=True)]
    name = write_jsonl(tmp_path / "wiki.jsonl", rows)
    kept = load_prompts(name, column="comment_text", where="label=1")
    assert kept["prompt"][:] == ["you are", "look at"]
    with pytest.raises(ValueError, match="No row of .* has label=2"):
        load_prompts(name, column="comment_text", where="label=2")
    with pytest.raises(ValueError, match="must be 'column=value' .*: comment_text, label"):
        load_prompts(name, column="comment_text", where="toxic=1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; give one"),
        ('{"text": "a", "id": 1}\n', "no column 'prompt' .columns: text, id.; name the one .* `--prompt_column`"),
        ('{"prompt": "a"}\n{"prompt": " "}\n', "Row 2 of .* has an empty 'prompt'"),
        ('{"prompt": 3}\n', "Row 1 of .* has 3 as 'prompt'; a prompt is a text"),
        ('{"prompt": "a"\n', "There is no JSON .* in line 1 of"),
    ],
)
def test_bad_files_say_what_is_wrong(content, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_prompts(str(path))
    assert "\n" not in str(error.value)


def test_names_that_lead_nowhere(tmp_path):
    with pytest.raises(ValueError, match="'./gone.jsonl' does not exist"):
        load_prompts("./gone.jsonl")
    (tmp_path / "data.xml").write_text("<a/>")
    with pytest.raises(ValueError, match="unknown ending '.xml'; known are .jsonl"):
        load_prompts(str(tmp_path / "data.xml"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing' cannot be loaded .folder."):
        load_prompts(str(tmp_path / "nothing"))
    assert not looks_like_path("allenai/real-toxicity-prompts")


def test_toxicity_filter_needs_a_toxicity(tmp_path):
    with pytest.raises(ValueError, match="needs 'prompt.toxicity'"):
        load_prompts(write_as("jsonl", tmp_path), min_toxicity=0.3)


@pytest.fixture
def tokenizer():
    words = [f"w{i}" for i in range(10)]
    model = models.WordLevel({word: i for i, word in enumerate([*words, "<unk>"])}, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_prompts_are_cut_with_their_continuation(tokenizer):
    long = {"prompt": "w0 w1", "continuation": " w2 w3 w4 w5 w6"}
    short = {"prompt": "w8", "continuation": " w9"}
    dataset = Dataset.from_list([long] * 40 + [short])
    cut = cut_prompts(dataset, tokenizer, 3, 5, seed=1)
    assert cut.column_names == ["prompt"]
    assert set(cut["prompt"]) == {"w0 w1 w2", "w0 w1 w2 w3", "w0 w1 w2 w3 w4"}
    assert len(cut) == 40  # the text of two tokens is gone
    assert cut["prompt"][:] == cut_prompts(dataset, tokenizer, 3, 5, seed=1)["prompt"][:]


def test_without_a_maximum_prompts_stay_whole(tokenizer):
    dataset = Dataset.from_list([{"prompt": "w0 w1", "continuation": " w2"}, {"prompt": "w8", "continuation": ""}])
    assert cut_prompts(dataset, tokenizer, 2, None)["prompt"][:] == ["w0 w1"]
    assert cut_prompts(dataset, tokenizer, None, None)[:] == {"prompt": ["w0 w1", "w8"]}
    with pytest.raises(ValueError, match="None of the 2 prompts has 9 tokens"):
        cut_prompts(dataset, tokenizer, 9, 9)
    with pytest.raises(ValueError, match="must be at least 1 and in order"):
        cut_prompts(dataset, tokenizer, 5, 4)


def test_texts_become_user_messages():
    dataset = Dataset.from_dict({"prompt": ["a", "{x} is"], "answer": [1, 2]}).filter(lambda row: row["answer"] > 1)
    dataset = wrap_in_conversation(dataset, "Continue: {prompt}")
    assert dataset["answer"][:] == [2]
    assert dataset["prompt"][:] == [[{"role": "user", "content": "Continue: {x} is"}]]
    with pytest.raises(ValueError, match="must contain {prompt}"):
        wrap_in_conversation(Dataset.from_dict({"prompt": ["a"]}), "Continue this")
    with pytest.raises(ValueError, match="conversations already"):
        wrap_in_conversation(dataset, "Continue: {prompt}")


def test_held_out_prompts_are_not_trained_on():
    prompts = [str(i) for i in range(10)]
    train, held_out = split_prompts(Dataset.from_dict({"prompt": prompts}), 3)
    assert len(held_out) == 3
    assert sorted([*train["prompt"], *held_out["prompt"]]) == prompts
    assert len(split_prompts(Dataset.from_dict({"prompt": prompts}), 50)[1]) == 5
    with pytest.raises(ValueError, match="give more rows, or `--eval_dataset_name`"):
        split_prompts(Dataset.from_dict({"prompt": ["a"]}), 1)
