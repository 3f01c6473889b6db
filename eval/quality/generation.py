# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Completions of a causal language model for evaluation: sampled at temperature 1 from the whole distribution."""

from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.experience.engines import TransformersEngine, eos_token_ids
from trl_ext.text.decoding import decode_completions
from trl_ext.text.tokens import appended_tokens, encode

from .loading import Prompt, render


@dataclass(frozen=True)
class Samples:
    """N = P * K completions, prompt by prompt: number `p * K + k` is the k-th for prompt p.

    Attributes:
        prompts: Rendered prompt of each completion.
        texts: Completions without special tokens.
        lengths: Tokens of each completion; the end-of-sequence token and padding do not count.
        terminated: Whether it ended with an end-of-sequence token, and not at the length limit.
        add_special_tokens: Whether the prompts still need the tokenizer's special tokens (not after a chat template).
    """

    prompts: list[str]
    texts: list[str]
    lengths: list[int]
    terminated: list[bool]
    add_special_tokens: bool

    @property
    def empty(self) -> list[bool]:
        """Whether each completion has no text, or nothing but white space."""
        return [not text.strip() for text in self.texts]


def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    description: str = "Sampling",
) -> Samples:
    """Sample at temperature 1 from the whole distribution; of the generation configuration only the EOS ids count.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer; pad and EOS may be the same token.
        prompts: P texts or conversations.
        num_samples: K completions per prompt.
        max_new_tokens: Length limit in tokens.
        batch_size: Completions sampled at a time.
        seed: Two calls with the same arguments return the same; the caller's random state is left alone.
        description: Shown by the progress bar.

    Raises:
        ValueError: If a prompt has no token, or leaves no room for `max_new_tokens` in the model's context.
    """
    texts, add_special_tokens = render(prompts, tokenizer)
    unique_ids = encode(texts, tokenizer, rendered=not add_special_tokens)
    appended = appended_tokens(tokenizer) if add_special_tokens else 0
    unique_ids = [ids[: len(ids) - appended] for ids in unique_ids]
    _check_lengths(unique_ids, max_new_tokens, getattr(model.config, "max_position_embeddings", None))
    prompt_ids = [ids for ids in unique_ids for _ in range(num_samples)]
    eos_ids = eos_token_ids(model, tokenizer)
    engine = TransformersEngine(tokenizer, eos_token_ids=eos_ids, max_new_tokens=max_new_tokens, batch_size=batch_size)
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(), tqdm(total=len(prompt_ids), desc=description, leave=False, disable=None) as bar:
            torch.manual_seed(seed)
            completions = engine(model, prompt_ids, on_progress=bar.update)
    finally:
        model.train(was_training)
    ids = [row[:-1] if row and row[-1] in eos_ids else row for row in completions.ids]
    return Samples(
        prompts=[text for text in texts for _ in range(num_samples)],
        texts=decode_completions(tokenizer, prompt_ids, ids),
        lengths=[len(row) for row in ids],
        terminated=list(completions.terminated),
        add_special_tokens=add_special_tokens,
    )


def _check_lengths(prompt_ids: list[list[int]], max_new_tokens: int, context: int | None) -> None:
    for i, ids in enumerate(prompt_ids):
        if len(ids) == 0:
            raise ValueError(f"Prompt {i} has no token; give it a text.")
        if context is not None and len(ids) + max_new_tokens > context:
            raise ValueError(
                f"Prompt {i} has {len(ids)} tokens, and with {max_new_tokens} new ones exceeds the model's context of "
                f"{context}; shorten it or lower --max_new_tokens."
            )
