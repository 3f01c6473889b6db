# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Texts that the policy keeps predicting while PPO changes it: PPO-ptx (InstructGPT, arXiv 2203.02155, section 3.5)."""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import apply_chat_template, is_conversational

from .rollout import Rollout, collate


@dataclass
class SupervisedBatch:
    """
    Texts to be predicted, in the shape of a rollout: what stands before them is its prompts, they are its completions.

    Attributes:
        texts: The texts.
        tokens: Tokens to be predicted in the whole optimizer step, over all processes.
    """

    texts: Rollout
    tokens: Tensor


class SupervisedData:
    """
    A dataset in one of TRL's formats for supervised fine-tuning.

    "text" and "messages" are predicted from their second token on, "completion" (text or conversation) given "prompt".

    Args:
        dataset: The rows.
        tokenizer: Tokenizer of the policy.
        max_length: Tokens of each text that are used, from its beginning.
        seed: Seed of the choice of rows.
        chat_template_kwargs: Extra arguments of the chat template.

    Raises:
        ValueError: when the dataset is empty, has none of these columns, or needs a chat template that is not there.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        seed: int,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        columns = set(dataset.column_names)
        if not ({"text", "messages"} & columns or {"prompt", "completion"} <= columns):
            raise ValueError(
                f"`ptx_dataset` has the columns {sorted(columns)}; it needs 'text', 'messages', or 'prompt' and "
                "'completion'."
            )
        if len(dataset) == 0:
            raise ValueError("`ptx_dataset` is empty; leave it out to train without it.")
        if is_conversational(dataset[0]) and tokenizer.chat_template is None:
            raise ValueError("`ptx_dataset` holds conversations but the tokenizer has no chat template; give texts.")
        self.dataset, self.tokenizer = dataset, tokenizer
        self.max_length, self.seed = max_length, seed
        self.chat_template_kwargs = dict(chat_template_kwargs or {})

    def batch(self, n: int, key: tuple[int, ...], device: torch.device | str = "cpu") -> Rollout:
        """
        `n` texts, chosen by the seed and `key` alone, so that a resumed run goes on with the same ones.

        Args:
            n: How many; rows are drawn with replacement.
            key: Optimizer step and process.
            device: Where they go.
        """
        generator = torch.Generator().manual_seed(hash((self.seed, *key)) % 2**63)
        rows = torch.randint(len(self.dataset), (n,), generator=generator).tolist()
        texts = [self._tokens(self.dataset[i]) for i in rows]
        prompts, completions = [p for p, _ in texts], [c for _, c in texts]
        return collate(prompts, completions, [True] * n, pad_token_id=self.tokenizer.pad_token_id, device=device)

    def _tokens(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Token ids that are given, and those to be predicted."""
        conversational = is_conversational(row)
        if conversational:
            row = apply_chat_template(row, self.tokenizer, **self.chat_template_kwargs)  # type: ignore[assignment]
        given, text = row.get("prompt", ""), row["completion"] if "prompt" in row else row["text"]
        # A template writes special tokens itself. Plain text ends where its row does, as in TRL's SFTTrainer.
        eos = "" if conversational else self.tokenizer.eos_token or ""

        def encode(string: str) -> list[int]:
            return self.tokenizer(string, add_special_tokens=not conversational)["input_ids"]

        ids = encode(given + text + eos)[: self.max_length]
        first = max(1, min(len(encode(given)) if given else 1, len(ids)))
        return ids[:first], ids[first:]
