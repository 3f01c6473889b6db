# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The comparison of scores for words with their sum at the end, run small on models of random weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.quality import token_rewards
from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.files import write_json_lines


def test_all_arms_run_and_the_table_names_them(tmp_path: Path, monkeypatch, capsys) -> None:
    prompts = tmp_path / "prompts.jsonl"
    write_json_lines(prompts, [{"prompt": f"the cat {i}"} for i in range(8)])
    assets = SimpleNamespace(model=save_tiny(tmp_path / "model", tiny_causal_lm()), train_prompts=str(prompts))
    monkeypatch.setattr(token_rewards, "prepare", lambda: assets)
    token_rewards.main([str(tmp_path), "--seeds", "0", "--episodes", "8", "--rollout", "4", "--levels", "-9", "9"])
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert list(curves) == ["words", "end", "end, lam 0.95"]
    assert all([episodes for episodes, _ in run] == [4, 8] for (run,) in curves.values())
    assert curves["words"][0][0] == curves["end"][0][0], "before the first update they are the same"
    assert "| 9 | end | never | - | - |" in capsys.readouterr().out


def test_episodes_to_a_level_and_the_ratio_by_hand() -> None:
    fast = [(10 * i, float(i)) for i in range(1, 9)]
    slow = [(10 * i, i / 2) for i in range(1, 9)]
    # The mean of five rollouts is 3, 4, 5, 6 and 1.5, 2, 2.5, 3.
    assert token_rewards.episodes_to(fast, 3.0) == 50 and token_rewards.episodes_to(slow, 3.0) == 80
    assert token_rewards.episodes_to(slow, 3.1) is None
    table = token_rewards.table({"words": [fast, fast], "end": [slow, slow]}, [3.0])
    assert table.splitlines()[2:] == ["| 3 | words | 50, 50 | 50 | 1.0 |", "| 3 | end | 80, 80 | 80 | 1.6 |"]


@pytest.mark.parametrize("word", ["clown", "legend"])
def test_words_have_scores(word: str) -> None:
    assert token_rewards.SCORES[word] == {"clown": -1.0, "legend": 1.0}[word]
