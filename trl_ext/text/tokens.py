# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Encoding of texts, and checks of a policy's tokenizer."""

import warnings
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, ProcessorMixin

# Models have a few percent more embeddings than tokens; below this share the tokenizer belongs to another model.
_LEAST_SHARE = 0.9


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a `processing_class` that is no tokenizer, before any model is loaded.

    Raises:
        TypeError: for a processor, a name, or any other object.
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


def has_vocabulary(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer knows more than special tokens; without files, transformers makes some that do not."""
    return bool(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))


def set_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer without a padding token pad with its EOS token.

    Raises:
        ValueError: when the tokenizer has neither token.
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

    Raises:
        ValueError: when the model has no embedding for the padding or the EOS token.
    """
    for kind, token in (("padding", tokenizer.pad_token_id), ("EOS", tokenizer.eos_token_id)):
        fault = None if token is None else unknown_token([token], tokenizer, num_embeddings)
        if fault is not None:
            raise ValueError(f"The tokenizer's {kind} token cannot be used: {fault}")
    if len(tokenizer) < _LEAST_SHARE * num_embeddings:
        warnings.warn(
            f"The tokenizer has {len(tokenizer)} tokens and the model embeddings for {num_embeddings}, so it may be "
            "another model's; tokens beyond its vocabulary are decoded to nothing.",
            stacklevel=2,
        )


def unknown_token(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, num_embeddings: int | None) -> str | None:
    """Return a sentence about the first token without an embedding, or None."""
    if num_embeddings is None or max(ids, default=0) < num_embeddings:
        return None
    token = next(i for i in ids if i >= num_embeddings)
    return (
        f"the token {tokenizer.convert_ids_to_tokens(token)!r} has the id {token}, and the model has embeddings for "
        f"{num_embeddings} tokens; call `model.resize_token_embeddings(len(tokenizer))`, or use the model's own "
        "tokenizer."
    )


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, rendered: bool = False) -> list[list[int]]:
    """Return the token ids of each text, with the tokenizer's special tokens, but never two BOS tokens.

    Args:
        texts: N texts; a text that begins with the BOS token gets no second one.
        tokenizer: Tokenizer of the policy.
        rendered: Whether a chat template wrote the texts, with all special tokens.
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
    """Return the number of special tokens (EOS, [SEP]) that the tokenizer appends to a text."""
    alone, whole = (tokenizer(text="a", add_special_tokens=added)["input_ids"] for added in (False, True))
    n = len(alone)
    start = next((i for i in range(len(whole) - n + 1) if n and whole[i : i + n] == alone), None)
    return 0 if start is None else len(whole) - start - n
