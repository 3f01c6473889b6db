# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Perplexity of completions given their prompts, under a frozen causal language model."""

import math
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.actor_critic.loading import load_policy


def perplexity(nll: float, tokens: float) -> float:
    """Return exp(nats per token) from the nats of `tokens` tokens; NaN without a token."""
    return math.exp(nll / tokens) if tokens else math.nan


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, add_special_tokens: bool = True
) -> tuple[list[int], list[int]]:
    """Return the token ids of a prompt and of its completion, tokenized together.

    Args:
        tokenizer: A fast tokenizer (character offsets are needed).
        prompt: Text of the prompt.
        completion: Text that follows it directly.
        add_special_tokens: Whether the tokenizer puts its special tokens in front. One that it appends is dropped.

    Returns:
        `(prompt_ids, completion_ids)`. A token across the boundary belongs to the completion.
    """
    encoded = tokenizer(prompt + completion, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    start = next((i for i, end in enumerate(ends) if end > len(prompt)), None)
    if start is None:
        return list(ids), []
    # Special tokens span no characters, so an appended end-of-sequence token ends at 0.
    return list(ids[:start]), [token for token, end in zip(ids[start:], ends[start:], strict=True) if end > 0]


@torch.no_grad()
def completion_nlls(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    batch_size: int = 16,
) -> list[float]:
    """Return the negative log-likelihood of every completion given its prompt.

    Args:
        model: A causal language model; it is put into eval mode for the call and back afterwards.
        prompt_ids: Token ids of each prompt, at least one each (a model without BOS cannot score the first token).
        completion_ids: Token ids of each completion, possibly none. What is in here counts, a final EOS too.
        batch_size: Sequences per forward pass.

    Returns:
        Nats, summed over the completion's tokens; 0.0 for an empty completion.

    Raises:
        ValueError: If the numbers differ or a prompt has no token.
    """
    if len(prompt_ids) != len(completion_ids):
        raise ValueError(f"There are {len(prompt_ids)} prompts for {len(completion_ids)} completions; pass one each.")
    nlls = [0.0] * len(completion_ids)
    # Similar lengths together, longest first: least padding, and too large a batch fails at once.
    todo = sorted(
        (i for i, ids in enumerate(completion_ids) if len(ids) > 0),
        key=lambda i: -len(prompt_ids[i]) - len(completion_ids[i]),
    )
    for i in todo:
        if len(prompt_ids[i]) == 0:
            raise ValueError(
                f"Prompt {i} has no token, so its completion's first token has no context; give it a text."
            )
    was_training = model.training
    model.eval()
    batches = [todo[i : i + batch_size] for i in range(0, len(todo), batch_size)]
    for batch in tqdm(batches, desc="Perplexity", leave=False, disable=None):
        rows = [[*prompt_ids[i], *completion_ids[i]] for i in batch]
        # Causal attention: padding on the right, whatever its id, is never seen by a real token.
        input_ids, mask = _pad(rows), _pad([[1] * len(row) for row in rows])
        counts = _pad([[0] * len(prompt_ids[i]) + [1] * len(completion_ids[i]) for i in batch])[:, 1:].bool()
        logits = model(input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits[counts.to(logits.device)].float(), input_ids[:, 1:][counts].to(logits.device), reduction="none"
        )
        per_row = losses.double().cpu().split([len(completion_ids[i]) for i in batch])
        for i, loss in zip(batch, per_row, strict=True):
            nlls[i] = float(loss.sum())
    model.train(was_training)
    return nlls


def _pad(rows: list[list[int]]) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


class ConditionalPerplexity(evaluate.Metric):
    """exp(mean negative log-likelihood per completion token), conditional on the prompt and weighted by tokens.

    One long completion counts for more than one short one. The completion is scored as TEXT: the reference's own
    tokenizer tokenizes prompt and completion together, and every token that ends after the prompt counts. The
    end-of-sequence token is not part of the text and does not count, so a model gains nothing by stopping early. Empty
    completions have no tokens: they are skipped and counted.

    Args:
        predictions (`list[str]`): Completions, without special tokens.
        prompts (`list[str]`): Their prompts, one each.
        model (`str` or `PreTrainedModel`): The frozen reference: a hub id, a folder or a loaded model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed only with a loaded model.
        batch_size (`int`, defaults to 16): Sequences per forward pass.
        add_special_tokens (`bool`, defaults to True): False for prompts that a chat template has rendered already.

    Returns:
        perplexity (`float`): exp(total NLL / total tokens); NaN if every completion is empty.
        perplexities (`list[float]`): The same per completion; NaN for an empty one.
        nlls (`list[float]`): Negative log-likelihood of every completion in nats, summed over its tokens.
        num_tokens (`list[int]`): Completion tokens scored, per completion.
        empty_fraction (`float`): Fraction of completions without a token.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string"), "prompts": datasets.Value("string")})
        return evaluate.MetricInfo(description=str(type(self).__doc__), citation="", features=features)

    def _compute(
        self,
        predictions: list[str],
        prompts: list[str],
        model: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 16,
        add_special_tokens: bool = True,
    ) -> dict[str, Any]:
        if isinstance(model, str):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
            model = load_policy(model, device=torch.accelerator.current_accelerator(check_available=True))
        if tokenizer is None:
            raise ValueError("`model` is a loaded model, so its `tokenizer` is needed too; pass both.")
        pairs = [encode_pair(tokenizer, p, c, add_special_tokens) for p, c in zip(prompts, predictions, strict=True)]
        nlls = completion_nlls(model, [pair[0] for pair in pairs], [pair[1] for pair in pairs], batch_size)
        return summarize(nlls, [len(pair[1]) for pair in pairs])


def summarize(nlls: list[float], num_tokens: list[int]) -> dict[str, Any]:
    """Return the result of `ConditionalPerplexity` from nats and tokens of each completion."""
    return {
        "perplexity": perplexity(sum(nlls), sum(num_tokens)),
        "perplexities": [perplexity(nll, count) for nll, count in zip(nlls, num_tokens, strict=True)],
        "nlls": nlls,
        "num_tokens": num_tokens,
        "empty_fraction": sum(count == 0 for count in num_tokens) / len(num_tokens),
    }
