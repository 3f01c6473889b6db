# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A model in a chat: its own conversation, and answers that arrive token by token."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from trl_ext.evaluation.sampling import sample
from trl_ext.experience.engines import eos_token_ids
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.running.finished import Sampling
from trl_ext.text.decoding import decode_answers
from trl_ext.text.rows import Message, Text

__all__ = ["Answer", "Speaker"]

_PAUSE = 0.04  # seconds between two looks at the text; decoding at every token would slow small models down
_UNFINISHED = "\ufffd"  # a character of which some bytes are still to come


class Answer(NamedTuple):
    """An answer of a model.

    Attributes:
        prompt: The text or conversation that it answers.
        text: Its text, without special tokens.
        ids: Its token ids, with the token that ended it.
        length: Tokens, without the one that ended it.
        terminated: Whether it ended by itself, and neither at the limit nor because it was stopped.
        stopped: Whether it was stopped.
    """

    prompt: Text
    text: str
    ids: list[int]
    length: int
    terminated: bool
    stopped: bool


class Speaker:
    """A model that takes part in a chat.

    Args:
        title: Name of the model for its readers.
        model: Causal language model.
        tokenizer: Its tokenizer; pad and EOS may be the same token.
        sampling: How it samples.
        conversational: Whether it answers messages through its chat template, and does not continue texts.
        system: System message of its conversations.
        switched: Context in which the model speaks, such as one with its adapters off.

    Attributes:
        messages: Its conversation so far: each model remembers its own answers.
    """

    def __init__(
        self,
        title: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        conversational: bool,
        system: str | None = None,
        switched: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.title, self.model, self.tokenizer, self.sampling = title, model, tokenizer, sampling
        self.conversational, self.switched = conversational, switched
        self._start: list[Message] = [{"role": "system", "content": system}] if system is not None else []
        self.messages = list(self._start)

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages = list(self._start)

    def undo(self) -> str | None:
        """Forget the last message and its answer; return the message, or None where there is none."""
        if len(self.messages) == len(self._start):
            return None
        *self.messages, said, _ = self.messages
        return said["content"]

    def remember(self, answer: Answer) -> None:
        """Add an answer, and the message that it answers, to the conversation."""
        if self.conversational:
            self.messages = [*answer.prompt, {"role": "assistant", "content": answer.text}]  # type: ignore[list-item]

    def prompt(self, said: str) -> Text:
        """Return the prompt that a text of the user makes: the conversation with it at the end, or the text."""
        return [*self.messages, {"role": "user", "content": said}] if self.conversational else said

    def room(self, said: str) -> tuple[int, int | None]:
        """Return the tokens of the prompt that a text makes, and the model's context; None where it has no limit."""
        (ids,) = tokenize_prompts([self.prompt(said)], self.tokenizer, dict(self.sampling.chat_template_kwargs))
        return len(ids), getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def answer(
        self,
        said: str,
        *,
        seed: int,
        on_text: Callable[[str], None] = lambda text: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Answer a text of the user.

        Args:
            said: The text.
            seed: The same seed and conversation give the same answer.
            on_text: Called with the whole text so far, now and then while the answer is made.
            stop: Asked after every token whether the answer is to end there.

        Raises:
            ValueError: when the prompt has no token, or fills the model's context.
        """
        prompt, options = self.prompt(said), dict(self.sampling.chat_template_kwargs)
        (ids,) = tokenize_prompts([prompt], self.tokenizer, options)
        eos = eos_token_ids(self.model, self.tokenizer)

        def show(row: list[int]) -> None:
            words = row[:-1] if row and row[-1] in eos else row
            (text,) = decode_answers(self.tokenizer, [prompt], [ids], [words], options)
            on_text(text.rstrip(_UNFINISHED))

        listener = _Listener(len(ids), show, stop)
        sampling = self.sampling.changed(max_completion_length=self._limit(*self.room(said)))
        engine = sampling.engine(self.model, self.tokenizer, stopping_criteria=(listener,))
        with self.switched():
            made = sample(self.model, self.tokenizer, engine, [prompt], seed=seed, chat_template_kwargs=options)
        on_text(made.completions[0])
        terminated = made.terminated[0] and not listener.stopped
        return Answer(
            prompt, made.completions[0], made.completion_ids[0], made.lengths[0], terminated, listener.stopped
        )

    def _limit(self, used: int, context: int | None) -> int:
        """Return how many tokens the answer may have after a prompt of `used` tokens."""
        if used == 0:
            raise ValueError("The text has no token; write more.")
        if context is not None and used >= context:
            remedy = "/reset or /undo makes room" if self.conversational and self.messages else "shorten it"
            raise ValueError(f"The prompt has {used} tokens, and the context of {self.title} {context}; {remedy}.")
        limit = self.sampling.max_completion_length
        return limit if context is None else min(limit, context - used)


class _Listener(StoppingCriteria):
    """Shows the tokens of one completion as they come, and ends it when asked."""

    def __init__(self, prompt_length: int, show: Callable[[list[int]], None], stop: Callable[[], bool]):
        self.prompt_length, self.show, self.stop = prompt_length, show, stop
        self.stopped, self._shown = False, 0.0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if time.monotonic() - self._shown >= _PAUSE:
            self.show(input_ids[0, self.prompt_length :].tolist())
            self._shown = time.monotonic()
        self.stopped = self.stopped or self.stop()
        return torch.full((len(input_ids),), self.stopped, device=input_ids.device)
