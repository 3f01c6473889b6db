# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Bad files of prompts, pairs and demonstrations: one line names the file and the row."""

import gzip
from pathlib import Path

import pytest

from tests.bad_inputs.case import Case, check, table
from trl_ext.instructions.data import load_demonstrations
from trl_ext.running.data import load_prompts

KINDS = "a prompt is a text, a dictionary with 'text', or a list of messages."
REMOVE = "remove it from the dataset."
NONE = "every row needs one (in a CSV file NA and null are none)."


def row(name: str, content: str | bytes, message: str, load=load_prompts, **options) -> Case:
    """A file of that name in the current directory."""

    def call() -> object:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return load(name, **options)

    return Case(name, call, ValueError, message)


CASES = [
    row("number.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', f"Row 2 of 'number.jsonl' has 3 as 'prompt'; {KINDS}"),
    row("misspelt.jsonl", '{"prompt": "a"}\n{"promt": "b"}\n', f"Row 2 of 'misspelt.jsonl' has no 'prompt'; {NONE}"),
    row("null.jsonl", '{"prompt": "a"}\n{"prompt": null}\n', f"Row 2 of 'null.jsonl' has no 'prompt'; {NONE}"),
    row("list.jsonl", '{"prompt": "a"}\n{"prompt": ["b"]}\n', f"Row 2 of 'list.jsonl' has ['b'] as 'prompt'; {KINDS}"),
    row("blank.jsonl", '{"prompt": " "}\n', f"Row 1 of 'blank.jsonl' has an empty 'prompt'; {REMOVE}"),
    row(
        "open.jsonl",
        '{"prompt": "a"}\n{"prompt": "b"\n',
        "There is no JSON (Expecting ',' delimiter, column 15) in line 2 of 'open.jsonl'; mend or remove it.",
    ),
    row(
        "mixed.jsonl",
        '{"prompt": "a"}\n["b"]\n',
        "There is a list instead of an object in line 2 of 'mixed.jsonl'; mend or remove it.",
    ),
    row(
        "texts.jsonl",
        '"a"\n"b"\n',
        "There is a text instead of an object in line 1 of 'texts.jsonl'; mend or remove it.",
    ),
    row(
        "open.json",
        '[{"prompt": "a"}',
        "There is no JSON (Expecting ',' delimiter, column 17) in line 1 of 'open.json'; mend or remove it.",
    ),
    row("number.json", "3", "There is a number instead of an object in line 1 of 'number.json'; mend or remove it."),
    row("none.json", "[]", "The dataset 'none.json' has no row in the split 'train'; give one with rows."),
    row(
        "nested.json",
        '{"data": [{"prompt": "a"}]}',
        "The dataset 'nested.json' has no column 'prompt' (columns: data); name the one that holds the prompts with "
        "`--prompt_column`.",
    ),
    row(
        "latin.jsonl",
        b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n',
        "Byte 16 is not UTF-8 in line 2 of 'latin.jsonl'; mend or remove it.",
    ),
    row("no.jsonl.gz", gzip.compress(b""), "The dataset 'no.jsonl.gz' is empty; give one with at least one prompt."),
    row(
        "packed.parquet.gz",
        b"a",
        "The dataset 'packed.parquet.gz' has an unknown ending '.gz'; known are .jsonl, .json, .parquet, .csv, .tsv, "
        ".txt, and all but .parquet also with .gz.",
    ),
    row(
        "open.jsonl.gz",
        gzip.compress(b'{"prompt": "a"}\n{"prompt"'),
        "There is no JSON (Expecting ':' delimiter, column 10) in line 2 of 'open.jsonl.gz'; mend or remove it.",
    ),
    row(
        "cut.jsonl.gz",
        gzip.compress(b'{"prompt": "a"}\n' * 99)[:-9],
        "There is damage in the gzip compression of 'cut.jsonl.gz'; mend or remove it.",
    ),
    row(
        "plain.csv.gz",
        b"prompt\na\n",
        "There is damage in the gzip compression of 'plain.csv.gz'; mend or remove it.",
    ),
    row("latin.csv", b"prompt\ncaf\xe9\n", "Byte 4 is not UTF-8 in line 2 of 'latin.csv'; mend or remove it."),
    row("latin.txt", b"caf\xe9\n", "Byte 4 is not UTF-8 in line 1 of 'latin.txt'; mend or remove it."),
    row("blank.txt", "a\n\nb\n", "Row 2 of 'blank.txt' has an empty 'text'; remove it from the dataset."),
    row("empty.jsonl", "", "The dataset 'empty.jsonl' is empty; give one with at least one prompt."),
    row("spaces.jsonl", "  \n", "The dataset 'spaces.jsonl' has no row in the split 'train'; give one with rows."),
    row("heading.csv", "prompt\n", "The dataset 'heading.csv' has no row in the split 'train'; give one with rows."),
    row("missing.csv", "prompt\na\nNA\n", f"Row 2 of 'missing.csv' has no 'prompt'; {NONE}"),
    row("numbers.csv", "prompt\n1\n2\n", f"Row 1 of 'numbers.csv' has 1 as 'prompt'; {KINDS}"),
    row(
        "semicolons.csv",
        "prompt;x\na;1\n",
        "The dataset 'semicolons.csv' has no column 'prompt' (columns: prompt;x); name the one that holds the prompts "
        "with `--prompt_column`.",
    ),
    row(
        "fields.csv",
        "prompt,x\na,1\nb,2,3\n",
        "The dataset 'fields.csv' cannot be read as csv: Error tokenizing data. C error: Expected 2 fields in line 3, "
        "saw 3.",
    ),
    row(
        "nonsense.parquet",
        "nonsense",
        "The dataset 'nonsense.parquet' cannot be read as parquet: Parquet magic bytes not found in footer. Either the "
        "file is corrupted or this is not a parquet file.",
    ),
    row(
        "slice.jsonl",
        '{"prompt": "a"}\n',
        "'train[:x]' is no split; write 'train', or a slice such as 'train[:100]'.",
        split="train[:x]",
    ),
    row(
        "beyond.jsonl",
        '{"prompt": "a"}\n',
        "The dataset 'beyond.jsonl' has no row in the split 'train[5:]'; give one with rows.",
        split="train[5:]",
    ),
    row(
        "filtered.jsonl",
        '{"prompt": "a", "keep": 0}\n{"prompt": "b", "keep": 1}\n{"prompt": " ", "keep": 1}\n',
        "Row 3 of 'filtered.jsonl' has an empty 'prompt'; remove it from the dataset.",
        where="keep=1",
    ),
    row(
        "columns.jsonl",
        '{"question": "a", "answer": "b"}\n',
        "The demonstrations 'columns.jsonl' have the columns question, answer; they need 'prompt' and 'completion', "
        "'messages' or 'text'.",
        load=load_demonstrations,
        split="train",
    ),
    row(
        "answer.jsonl",
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": null}\n',
        "Row 2 of the demonstrations 'answer.jsonl' has None as 'completion'; give a text or a list of messages, or "
        "remove the row.",
        load=load_demonstrations,
        split="train",
    ),
    row(
        "turns.jsonl",
        '{"messages": []}\n',
        "Row 1 of the demonstrations 'turns.jsonl' has [] as 'messages'; give a text or a list of messages, or remove "
        "the row.",
        load=load_demonstrations,
        split="train",
    ),
]  # fmt: skip


@table(CASES)
def test_a_bad_file_is_answered_in_one_line(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    check(case)
