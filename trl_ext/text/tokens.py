# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""From text to tokens, and what a tokenizer must be for a policy to be trained with it."""

import warnings
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, ProcessorMixin

# Models round their embeddings up by a few percent; with less than this the vocabulary is another one.
_LEAST_SHARE = 0.9


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer, before any model is loaded.

    Raises:
        TypeError: for a processor, a name, or anything else.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    kind = type(tokenizer).__name__
    if isinstance(tokenizer, ProcessorMixin):
        fix = "PPOTrainer trains on text alone, so give its tokenizer, `processor.tokenizer`"
    elif isinstance(tokenizer, str):
        fix = f"give the tokenizer itself, `AutoTokenizer.from_pretrained({tokenizer!r})`"
    elif isinstance(tokenizer, Tokenizer):
        fix = "wrap it, `PreTrainedTokenizerFast(tokenizer_object=tokenizer)`, and name its EOS token"
    else:
        fix = "give a tokenizer of transformers"
    raise TypeError(f"`processing_class` is a {kind}; {fix}.")


def set_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer without a padding token pad with its EOS token.

    Raises:
        ValueError: when it has neither.
    """
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has neither a padding nor an EOS token; set `tokenizer.eos_token` to the token that ends a "
            "text."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Compare a tokenizer with the model's embeddings.

    Args:
        tokenizer: Tokenizer of the policy, with a padding token.
        num_embeddings: Tokens that the model has embeddings for.

    Raises:
        ValueError: when the model does not know the padding or the EOS token.
    """
    for kind, token in (("padding", tokenizer.pad_token_id), ("EOS", tokenizer.eos_token_id)):
        fault = None if token is None else unknown_token([token], tokenizer, num_embeddings)
        if fault is not None:
            raise ValueError(f"The tokenizer's {kind} token cannot be used: {fault}")
    if len(tokenizer) < _LEAST_SHARE * num_embeddings:
        warnings.warn(
            f"The tokenizer has {len(tokenizer)} tokens and the model embeddings for {num_embeddings}, so it may be "
            "another model's; what the policy writes beyond its vocabulary is decoded to nothing.",
            stacklevel=2,
        )


def unknown_token(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, num_embeddings: int | None) -> str | None:
    """A sentence about the first token that the model has no embedding for, or None."""
    if num_embeddings is None or max(ids, default=0) < num_embeddings:
        return None
    token = next(i for i in ids if i >= num_embeddings)
    return (
        f"the token {tokenizer.convert_ids_to_tokens(token)!r} has the id {token}, and the model has embeddings for "
        f"{num_embeddings} tokens; call `model.resize_token_embeddings(len(tokenizer))`, or use the model's own "
        "tokenizer."
    )


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, rendered: bool = False) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer puts around it, but never two BOS tokens.

    Args:
        texts: N texts. One that begins with the BOS token, as a chat template has written it, gets no second one.
        tokenizer: Tokenizer of the policy.
        rendered: Whether a chat template has just written the texts, special tokens and all.
    """
    ids = tokenizer(text=list(texts), add_special_tokens=not rendered)["input_ids"]
    bos, token = tokenizer.bos_token_id, tokenizer.bos_token
    if rendered or bos is None:
        return ids
    return [
        row[1:] if row[:2] == [bos, bos] and text.startswith(token) and not text.startswith(2 * token) else row
        for text, row in zip(texts, ids, strict=True)
    ]


def appended_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens (EOS, [SEP]) the tokenizer appends to a text."""
    alone, whole = (tokenizer(text="a", add_special_tokens=added)["input_ids"] for added in (False, True))
    n = len(alone)
    start = next((i for i in range(len(whole) - n + 1) if n and whole[i : i + n] == alone), None)
    return 0 if start is None else len(whole) - start - n
