# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""From the tokens that a policy sampled to the text that it wrote.

Tokens have no text of their own. The decoders of Llama 2, Mistral, TinyLlama and Phi-3 drop the space before the first
word, and decoders of other makes join a word to what stands before it. So a completion is decoded behind its prompt.
"""

import os.path
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import apply_chat_template, is_conversational

# A letter: a text that every decoder leaves as it is.
_CONTEXT = "a"


def decode_completions(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[list[int]], completion_ids: Sequence[list[int]]
) -> list[str]:
    """Text of each completion, such that prompt and completion together are the text of all tokens.

    Special tokens are left out of both. Where the end of a prompt reads differently once the completion follows (an
    unfinished character, `clean_up_tokenization_spaces`), the completion is decoded behind a letter instead.

    Args:
        tokenizer: Tokenizer of the policy.
        prompt_ids: N lists of token ids, unpadded.
        completion_ids: N lists of token ids, unpadded; empty ones are fine.
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
    """Text of a completion whose prompt is not known, with the space before its first word."""
    context = tokenizer(_CONTEXT, add_special_tokens=False)["input_ids"]
    before, whole = _decode(tokenizer, [context, [*context, *ids]])
    return whole.removeprefix(before)


def characters_in_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int], n: int) -> int:
    """How many characters of `decode_alone(tokenizer, ids)` the first `n` tokens complete."""
    # A character of several tokens reads as a replacement mark until its last token has come.
    return len(os.path.commonprefix([decode_alone(tokenizer, ids[:n]), decode_alone(tokenizer, ids)]))


def decode_answers(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[str]:
    """Decode completions for reward functions: the text after a text, the assistant's content after a conversation.

    Some templates (Llama 2, Mistral) write a space between the assistant's header and the content. The policy has to
    write that space itself, and it is no part of the content: rendered with it, a template would write two.

    Args:
        tokenizer: Tokenizer of the policy.
        prompts: N texts or conversations.
        prompt_ids: N lists of token ids, as the policy got them.
        completion_ids: N lists of token ids, as sampled.
        chat_template_kwargs: Extra arguments of the chat template.
    """
    texts = decode_completions(tokenizer, prompt_ids, completion_ids)
    if not prompts or not is_conversational({"prompt": prompts[0]}):
        return texts
    gap = _written_by_template(tokenizer, chat_template_kwargs or {})
    # A message that the policy goes on with has its header and its first words already.
    begun = [prompt[-1]["role"] == "assistant" for prompt in prompts]
    return [text if b else text.removeprefix(gap) for text, b in zip(texts, begun, strict=True)]


def as_completions(prompts: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """Answers in the format of their prompts: a message of the assistant each where those are conversations."""
    if not prompts or not is_conversational({"prompt": prompts[0]}):
        return list(texts)
    return [[{"role": "assistant", "content": text}] for text in texts]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]]) -> list[str]:
    return tokenizer.batch_decode(list(ids), skip_special_tokens=True)


def _written_by_template(tokenizer: PreTrainedTokenizerBase, kwargs: dict[str, Any]) -> str:
    """The white space that the template puts between the header of an answer and the answer."""
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
