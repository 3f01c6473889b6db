# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`SentenceReward`: the reward of a text, sentence by sentence."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from trl_ext.text.rows import Text
from trl_ext.text.sentences import sentence_ends

from .base import SILENT, Batch, Reward, RewardValueError, completion_text, reward_name
from .calling import call_rewards
from .combine import Combination
from .spans import token_ends
from .tokens import sums


class SentenceReward(Combination):
    """A reward of texts as token rewards: the last token of each sentence earns what the sentence has changed.

    The reward function scores the completion up to the end of each sentence. The first sentence earns its own score,
    each further one the difference to the score before it, so that the sum over the tokens is the reward of the whole
    completion (potential-based shaping, Ng, Harada & Russell 1999): the objective stays, and the credit is nearer to
    the words that earned it. A function that counts only the latest sentence, or an average over sentences, can make
    later differences negative.

    A completion of S sentences costs S scores in place of one. A function with state would count all of them: put
    `RunningNormalization` outside.

    Args:
        reward: reward function of texts or conversations.
        tokenizer: of the policy.
        ends: returns where the sentences of a text end, in ascending order; the last one at the text's end.
        name: name in logs, by default "sentences_" and the function's.

    Raises:
        ValueError: when called: no `completion_ids`, or `ends` returns something else.
    """

    def __init__(
        self,
        reward: Callable,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ends: Callable[[str], list[int]] = sentence_ends,
        name: str | None = None,
    ):
        super().__init__([reward], name or f"sentences_{reward_name(reward)}")
        self.tokenizer, self.ends = tokenizer, ends

    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return the reward of each completion on the tokens that end its sentences."""
        if batch.completion_ids is None:
            raise RewardValueError(f"'{self.__name__}' needs the completions' tokens: pass `completion_ids`.")
        texts = [completion_text(completion) for completion in batch.completions]
        wholes = sums(rewards[0])
        samples = zip(texts, batch.completion_ids, wholes, strict=True)
        sentences = [[] if whole is None else self._sentences(text, ids) for text, ids, whole in samples]
        scores = iter(self._score_beginnings(texts, sentences, batch))
        spread: list[Reward] = []
        for ids, found, whole in zip(batch.completion_ids, sentences, wholes, strict=True):
            if not found or whole is None:
                spread.append(whole)
                continue
            tokens, before = [0.0] * len(ids), 0.0
            for sentence in found[:-1]:
                score = next(scores)
                if score is not None:  # otherwise the next sentence earns the change of both
                    tokens[sentence.token] += score - before
                    before = score
            tokens[found[-1].token] += whole - math.fsum(tokens)
            spread.append(tokens)
        return spread

    def _sentences(self, text: str, ids: list[int]) -> list["_Sentence"]:
        """Return the sentences of a completion; none of one without text."""
        if not text or not ids:
            return []
        found = list(self.ends(text)) or [len(text)]
        if found != sorted(set(found)) or found[0] < 1 or found[-1] != len(text):
            raise RewardValueError(
                f"`ends` of '{self.__name__}' returned {found} for a text of {len(text)} characters: return ascending "
                "positions, the last one at the text's end."
            )
        complete = token_ends(text, ids, self.tokenizer)
        return [_Sentence(end, bisect_left(complete, end)) for end in found]

    def _score_beginnings(
        self, texts: list[str], sentences: list[list["_Sentence"]], batch: Batch
    ) -> list[float | None]:
        """Return the rewards of each completion's beginnings, up to the end of every sentence but the last."""
        assert batch.completion_ids is not None
        places = [(i, sentence) for i, found in enumerate(sentences) for sentence in found[:-1]]
        if not places:
            return []
        part = replace(
            batch.select([i for i, _ in places]),
            completions=[_beginning(batch.completions[i], texts[i][: sentence.end]) for i, sentence in places],
            completion_ids=[batch.completion_ids[i][: sentence.token + 1] for i, sentence in places],
            services={key: SILENT.get(key, value) for key, value in batch.services.items()},
        )
        return sums(call_rewards(self.members, part)[0])


class _Sentence(NamedTuple):
    """The end of a sentence: the number of characters up to it, and the token that completes them."""

    end: int
    token: int


def _beginning(completion: Text, text: str) -> Text:
    if isinstance(completion, str):
        return text
    return [{**(completion[0] if len(completion) == 1 else {"role": "assistant"}), "content": text}]
