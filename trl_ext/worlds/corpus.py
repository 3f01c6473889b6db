# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Files made from the grammar: texts for the language model, labelled comments, prompts.

Openings and continuations are each dealt out by a hash, so nothing held out is seen in training: the two classifiers
share no continuation, and neither any model nor the training prompts contain an evaluation opening.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from trl_ext.files import write_json_lines

from .grammar import Comment, sample_comment, sample_opening

LM_TEXTS = "lm_texts.jsonl"
HALF_A = "labelled_a.jsonl"
HALF_B = "labelled_b.jsonl"
HELD_OUT = "labelled_held_out.jsonl"
TRAIN_PROMPTS = "prompts_train.jsonl"
EVAL_PROMPTS = "prompts_eval.jsonl"


def bucket(text: str) -> int:
    """Return a digit from 0 to 9, the same for the same text on every machine and in every run."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10


def is_held_out_opening(opening: str) -> bool:
    """Return whether an opening is kept for evaluation, as one in ten is."""
    return bucket(opening) == 0


def half(comment: Comment) -> str:
    """Return the file of labelled comments for this continuation: 40% A, 40% B, 20% held out."""
    digit = bucket(comment.continuation)
    return HALF_A if digit < 4 else HALF_B if digit < 8 else HELD_OUT


def distinct(number: int, draw: Callable[[], str | Comment], keep: Callable[[Any], bool]) -> Iterator[Any]:
    """Draw until there are `number` different texts that pass `keep`.

    Raises:
        ValueError: If the grammar runs out of new ones.
    """
    seen: set[str] = set()
    idle = 0
    while len(seen) < number:
        candidate = draw()
        text = candidate if isinstance(candidate, str) else candidate.text
        if text not in seen and keep(candidate):
            seen.add(text)
            idle = 0
            yield candidate
        elif (idle := idle + 1) > 20_000:
            raise ValueError(f"the grammar has only {len(seen)} distinct entries of {number} asked for; ask for fewer")


def _labelled(comments: Iterable[Comment]) -> Iterator[dict[str, Any]]:
    # A reward may score the completion with or without its prompt, so every third row has no opening.
    for index, comment in enumerate(comments):
        text = comment.continuation.strip() if index % 3 == 2 else comment.text
        yield {"text": text, "label": int(comment.toxic)}


def write_corpus(
    folder: Path,
    *,
    seed: int,
    lm_texts: int,
    labelled: int,
    held_out: int,
    train_prompts: int,
    eval_prompts: int,
) -> None:
    """Write the six JSONL files into `folder`.

    Args:
        folder: An existing directory.
        seed: Same seed, same bytes.
        lm_texts: Rows (`text`) for the language model.
        labelled: Rows (`text`, `label` with 1 = toxic) in each of the halves A and B.
        held_out: Labelled rows with openings and continuations that no model has seen.
        train_prompts: Rows (`prompt`) for PPO.
        eval_prompts: Rows (`prompt`) for evaluation.

    Raises:
        ValueError: If more distinct rows are asked for than the grammar yields.
    """
    rng = random.Random(seed)

    def draw() -> Comment:
        return sample_comment(rng)

    def opening() -> str:
        return sample_opening(rng).text

    def for_training(comment: Comment) -> bool:
        return not is_held_out_opening(comment.opening)

    texts = distinct(lm_texts, draw, for_training)
    write_json_lines(folder / LM_TEXTS, ({"text": comment.text} for comment in texts))
    half_a = distinct(labelled, draw, lambda comment: for_training(comment) and half(comment) == HALF_A)
    write_json_lines(folder / HALF_A, _labelled(half_a))
    half_b = distinct(labelled, draw, lambda comment: for_training(comment) and half(comment) == HALF_B)
    write_json_lines(folder / HALF_B, _labelled(half_b))
    unseen = distinct(held_out, draw, lambda comment: not for_training(comment) and half(comment) == HELD_OUT)
    write_json_lines(folder / HELD_OUT, _labelled(unseen))
    prompts = distinct(train_prompts, opening, lambda text: not is_held_out_opening(text))
    write_json_lines(folder / TRAIN_PROMPTS, ({"prompt": text} for text in prompts))
    write_json_lines(
        folder / EVAL_PROMPTS, ({"prompt": text} for text in distinct(eval_prompts, opening, is_held_out_opening))
    )
