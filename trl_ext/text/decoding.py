# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Decoding of sampled tokens.

The text of a token depends on its context: the decoders of Llama 2, Mistral, TinyLlama and Phi-3 drop the space before
the first word, and others join a word to the text before. So a completion is decoded behind its prompt.
"""

import os.path
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import apply_chat_template, is_conversational

# A letter, which no decoder changes.
_CONTEXT = "a"
# What a tokenizer of bytes writes for a character whose last tokens are still to come.
UNFINISHED = "\ufffd"


def decode_completions(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[list[int]], completion_ids: Sequence[list[int]]
) -> list[str]:
    """Decode each completion, so that prompt and completion joined are the text of all tokens.

    Special tokens are left out. Where the completion changes the text at the end of the prompt (an unfinished
    character, `clean_up_tokenization_spaces`), the completion is decoded behind a letter instead.

    Token ids are unpadded; completions may be empty.
    """
    if not prompt_ids:
        return []
    prompts = _decode(tokenizer, prompt_ids)
    wholes = _decode(tokenizer, [p + c for p, c in zip(prompt_ids, completion_ids, strict=True)])
    return [
        whole[len(prompt) :] if whole.startswith(prompt) else decode_alone(tokenizer, ids)
        for prompt, whole, ids in zip(prompts, wholes, completion_ids, strict=True)
    ]


def decode_alone(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Decode a completion without its prompt, with the space before its first word."""
    context = tokenizer(_CONTEXT, add_special_tokens=False)["input_ids"]
    before, whole = _decode(tokenizer, [context, [*context, *ids]])
    return whole.removeprefix(before)


def decode_beginnings(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Decode the first token of a completion, the first two, and so on; the last text is `decode_alone`'s."""
    context = tokenizer(_CONTEXT, add_special_tokens=False)["input_ids"]
    before, *wholes = _decode(tokenizer, [context, *([*context, *ids[:n]] for n in range(1, len(ids) + 1))])
    return [whole.removeprefix(before) for whole in wholes]


def characters_in_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int], n: int) -> int:
    """Return the number of characters of `decode_alone(tokenizer, ids)` that the first `n` tokens complete."""
    # A character of several tokens is decoded to a replacement mark until its last token.
    return len(os.path.commonprefix([decode_alone(tokenizer, ids[:n]), decode_alone(tokenizer, ids)]))


def decode_answers(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[str]:
    """Decode completions for reward functions: the text after a text, the assistant's content after a conversation.

    Some templates (Llama 2, Mistral) write a space between the assistant's header and the content. The policy samples
    that space, but it is no part of the content: the template would write a second one.

    Prompts are texts or conversations; token ids are unpadded.
    """
    texts = decode_completions(tokenizer, prompt_ids, completion_ids)
    if not prompts or not is_conversational({"prompt": prompts[0]}):
        return texts
    gap = gap_before_answer(tokenizer, chat_template_kwargs or {})
    # A prefilled message has its header and its first words in the prompt.
    begun = [prompt[-1]["role"] == "assistant" for prompt in prompts]
    return [text if b else text.removeprefix(gap) for text, b in zip(texts, begun, strict=True)]


def as_completions(prompts: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """Return answers in the format of their prompts: one assistant message each for conversations."""
    if not prompts or not is_conversational({"prompt": prompts[0]}):
        return list(texts)
    return [[{"role": "assistant", "content": text}] for text in texts]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]]) -> list[str]:
    return tokenizer.batch_decode(list(ids), skip_special_tokens=True)


def gap_before_answer(tokenizer: PreTrainedTokenizerBase, kwargs: dict[str, Any]) -> str:
    """Return the white space that the template writes between the header of an answer and the answer."""
    example = {
        "prompt": [{"role": "user", "content": _CONTEXT}],
        "completion": [{"role": "assistant", "content": _CONTEXT}],
    }
    try:
        written = apply_chat_template(example, tokenizer, **kwargs)["completion"]
    except Exception:  # a template need not accept this conversation
        return ""
    before, found, _ = written.partition(_CONTEXT)
    return before if found and before.isspace() else ""
