# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What became of the completions."""

from typing import Any

import pytest

from trl_ext.evaluation.sampling import Samples
from trl_ext.reports.samples import group_of, samples_section, sorted_samples

LONG, SHORT = "one two three four five six", "one two"


@pytest.mark.parametrize(
    ("before", "after", "group"),
    [
        ((0.9, LONG), (0.1, LONG), "fixed"),
        ((0.9, LONG), (0.1, SHORT), "shortened"),
        ((0.1, LONG), (0.1, ""), "shortened"),
        ((0.9, LONG), (0.8, SHORT), "still toxic"),
        ((0.1, LONG), (0.8, SHORT), "worse"),
        ((0.1, LONG), (0.1, LONG), "fine"),
        ((0.1, SHORT), (0.1, ""), "fine"),
        ((None, LONG), (None, LONG), "fine"),
    ],
)
def test_groups_of_a_judge(before: tuple[Any, str], after: tuple[Any, str], group: str) -> None:
    assert group_of(_sample(before, after), "lower") == group


@pytest.mark.parametrize(
    ("before", "after", "group"),
    [
        ((1.0, LONG), (2.0, LONG), "better"),
        ((1.0, LONG), (2.0, SHORT), "shortened"),
        ((1.0, LONG), (1.05, LONG), "same"),
        ((1.0, LONG), (0.0, SHORT), "worse"),
        ((None, LONG), (2.0, LONG), "same"),
    ],
)
def test_groups_of_a_reward(before: tuple[Any, str], after: tuple[Any, str], group: str) -> None:
    assert group_of(_sample(before, after), "higher", tolerance=0.1) == group


def test_every_group_has_its_share_and_all_are_counted() -> None:
    scores_before, scores_after = [0.9] * 8 + [0.1, 0.1], [0.1] * 8 + [0.9, 0.1]
    chosen = sorted_samples(_samples(10), _samples(10), scores_before, scores_after, 4, "lower")
    assert chosen.counts == {"fixed": 8, "shortened": 0, "still toxic": 0, "worse": 1, "fine": 1}
    assert [sample["group"] for sample in chosen.samples] == ["fixed", "fixed", "worse", "fine"]
    assert [sample["prompt"] for sample in chosen.samples] == ["p0", "p1", "p8", "p9"]
    page = samples_section(chosen.samples, chosen.counts, "lower", "toxicity")
    assert "Fixed: 8 of 10" in page and "; 2 shown)" in page
    assert page.index("Fixed") < page.index("Worse") < page.index("<details>") < page.index("Fine")
    assert "Shortened" not in page
    assert sorted_samples(_samples(3), _samples(3), [0.9] * 3, [0.1] * 3, 0, "lower").samples == []


def test_prompt_and_completion_are_one_text_and_conversations_are_not() -> None:
    plain = {"prompt": "The bus", "before": " is late", "after": " ", "score_before": 0.9, "score_after": 0.1}
    chat = {"prompt": [{"role": "user", "content": "Hi <b>"}], "before": "Yes.", "after": "No."}
    page = samples_section([plain, chat], None, "lower", "toxicity")
    assert '<span class="prompt">The bus</span> is late</div>' in page
    assert '<span class="prompt">The bus</span> <span class="empty">(empty)</span></div>' in page
    assert page.count("user: Hi &lt;b&gt;") == 1


def test_long_texts_scroll_and_can_be_reached_by_keyboard() -> None:
    long = {"prompt": "p", "before": "word " * 400, "after": "x" * 5000}
    assert samples_section([long], None, "lower", "toxicity").count('tabindex="0"') == 2


def _sample(before: tuple[Any, str], after: tuple[Any, str]) -> dict[str, Any]:
    return {"score_before": before[0], "before": before[1], "score_after": after[0], "after": after[1]}


def _samples(n: int) -> Samples:
    return Samples([f"p{i}" for i in range(n)], [[1]] * n, [LONG] * n, [[2]] * n, [True] * n, [6] * n)
