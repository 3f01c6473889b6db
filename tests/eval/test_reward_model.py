# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The command that measures a reward model."""

import json

import pytest
import torch

from eval.quality.reward_model import main
from tests.tiny_models import save_tiny, tiny_classifier, tiny_tokenizer


@pytest.fixture
def reward_model(tmp_path):
    return save_tiny(tmp_path / "rm", tiny_classifier(("reward",), arch="llama", layers=1))


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize(("flags", "ending"), [([], "<eos>"), (["--no-append_eos"], "")])
def test_command_line(reward_model, tmp_path, capsys, flags, ending):
    rows = [
        {"prompt": "the cat", "chosen": " sat", "rejected": " ran"},
        {"chosen": "the cat sat on the mat", "rejected": "the cat"},
        {"prompt": "the", "chosen": " dog", "rejected": " house and more"},
    ]
    command = [reward_model, "--pairs", write(tmp_path / "pairs.jsonl", rows), "--output", str(tmp_path / "out")]
    assert main([*command, *flags, "--batch_size", "2"]) == 0
    assert "on 3 pairs" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "reward_model.json").read_text())
    model, tokenizer = tiny_classifier(("reward",), arch="llama", layers=1), tiny_tokenizer()
    right = 0
    for row in rows:
        with torch.no_grad():
            scores = [
                model(**tokenizer(row.get("prompt", "") + row[side] + ending, return_tensors="pt")).logits.item()
                for side in ("chosen", "rejected")
            ]
        right += scores[0] > scores[1]
    assert results["accuracy"]["estimate"] == pytest.approx(right / 3) and results["pairs"] == 3
    assert results["chosen_longer"] == pytest.approx(1 / 3)
    page = (tmp_path / "out" / "reward_model.html").read_text()
    assert 'id="plot-reliability"' in page and 'id="plot-margins"' in page
    conversations = [{side: [{"role": "user", "content": side}] for side in ("chosen", "rejected")}]
    assert main([reward_model, "--pairs", write(tmp_path / "c.jsonl", conversations), "--output", str(tmp_path)]) == 0


def test_errors(reward_model, tmp_path, capsys):
    pair = {"chosen": "a", "rejected": "b"}
    two = save_tiny(tmp_path / "two", tiny_classifier(("a", "b"), arch="llama"))
    for model, rows, message in (
        (reward_model, [pair, {"chosen": "a"}], "Row 2 .* has no 'rejected'"),
        (reward_model, [{"chosen": "", "rejected": "b"}], "Row 1 .* has no 'chosen'"),
        (reward_model, [{"chosen": "a", "rejected": "a"}], "identical sides"),
        (reward_model, [pair | {"prompt": [{"role": "user", "content": "p"}]}], "mixes texts and lists"),
        (reward_model, [], "is empty"),
        (two, [pair], "has 2"),
    ):
        assert main([model, "--pairs", write(tmp_path / "p.jsonl", rows), "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert all(part in error for part in message.split(" .* ")), error
    assert main([reward_model, "--pairs", str(tmp_path / "none"), "--output", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
