# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Scores of words, sentences and other spans of a completion's text, on the tokens that end them."""

import os.path
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from trl_ext.text.decoding import UNFINISHED, decode_alone, decode_beginnings

Span = tuple[int, int, float]
"""First character, the character behind the last one, and score."""


def spread_spans(
    spans: Iterable[Span], text: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[float]:
    r"""Return token rewards: the score of each span on the token that ends it.

    A token that ends several spans earns all of their scores. Special tokens have no characters and end no span, so
    that the EOS token earns nothing.

    Args:
        spans: Parts of `text` with their scores, in any order.
        text: The policy's own words, such as `completion_text(completion)`.
        ids: The tokens of the completion, `completion_ids[i]`.
        tokenizer: Of the policy.

    Returns:
        One number for each of `ids`; their sum is that of the scores.

    Raises:
        ValueError: a span is empty or outside the text, or the text is not that of the tokens.

    Example:
        spans = [(*word.span(), 1.0) for word in re.finditer(r"\w+", text)]
    """
    rewards, ends = [0.0] * len(ids), token_ends(text, ids, tokenizer)
    for start, end, score in spans:
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"The span from {start} to {end} is empty or outside of the text, which has {len(text)} characters."
            )
        rewards[bisect_left(ends, end)] += score
    return rewards


def token_ends(text: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return for each token how many characters of `text` are complete with it, in ascending order.

    A character of several tokens is complete with the last of them; one whose last tokens are still to come may be left
    out of the text, as `RewardsSoFar` does. The white space before the first word, which some chat templates write and
    a message does not contain, counts for nothing.

    Raises:
        ValueError: the text is not that of the tokens.
    """
    whole = decode_alone(tokenizer, list(ids))
    if not text.endswith(UNFINISHED):
        whole = whole.rstrip(UNFINISHED)
    before = len(whole) - len(text)
    if not whole.endswith(text) or whole[:before].strip():
        before = len(whole) - len(whole.lstrip()) - (len(text) - len(text.lstrip()))
        if whole.lstrip() != text.lstrip():
            raise ValueError(
                f"The tokens of a completion are {whole[:40]!r} as text, and not {text[:40]!r}: give the tokenizer of "
                "the policy and the completion's own `completion_ids`."
            )
    ends, complete = [], 0
    for beginning in decode_beginnings(tokenizer, list(ids)):
        # A character of several tokens is decoded to a replacement mark until its last token.
        complete = max(complete, len(os.path.commonprefix([beginning, whole])))
        ends.append(min(max(0, complete - before), len(text)))
    return ends
