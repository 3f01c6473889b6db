# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Supervised texts of PPO-ptx, whose language-model loss is added to PPO's (arXiv 2203.02155, section 3.5)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from trl_ext.messages.printable import first_line
from trl_ext.rewards.base import conversation
from trl_ext.text.rows import (
    SHAREGPT,
    TEMPLATE_COLUMNS,
    check_dataset,
    conversation_fault,
    is_conversation,
    options_fault,
    plain,
    render,
    template_options,
    template_source,
    value_fault,
)
from trl_ext.text.tokens import encode, unknown_token

from .rollout import Rollout, collate
from .seeds import generator_of

_CHUNK = 1000  # rows that are checked at a time


@dataclass
class SupervisedBatch:
    """Supervised texts in the shape of a rollout: contexts as prompts, the predicted parts as completions.

    Attributes:
        texts: The texts.
        tokens: Predicted tokens in the whole optimizer step, over all processes; 0-dim.
    """

    texts: Rollout
    tokens: Tensor


class SupervisedData:
    """A dataset in one of TRL's formats for supervised fine-tuning.

    "text" and "messages" are predicted from their second token on, "completion" (text or conversation) given "prompt".
    A conversation is rendered with its row's "tools" and "chat_template_kwargs". Every row is checked beforehand.

    Args:
        dataset: The rows.
        tokenizer: Tokenizer of the policy.
        max_length: Tokens of each text that are used, from its beginning.
        seed: Seed of the choice of rows.
        chat_template_kwargs: Extra arguments of the chat template.
        num_embeddings: Tokens that the model has embeddings for; None to leave them unchecked.

    Raises:
        TypeError: when it is not a `datasets.Dataset`.
        ValueError: when the dataset is empty, has none of these columns, needs a chat template that is not there, or
            has a row of another kind than the first, or one that leaves nothing to predict.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        seed: int,
        chat_template_kwargs: dict[str, Any] | None = None,
        num_embeddings: int | None = None,
    ):
        self.columns = text_columns(dataset)
        options = [name for name in TEMPLATE_COLUMNS if name in dataset.column_names]
        self.dataset, self.tokenizer = dataset.select_columns([*self.columns, *options]), tokenizer
        self.max_length, self.seed = max_length, seed
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.conversational = is_conversation(dataset[0][self.columns[-1]])
        if self.conversational and tokenizer.chat_template is None:
            raise ValueError("`ptx_dataset` holds conversations but the tokenizer has no chat template; give texts.")
        starts = range(0, len(dataset), _CHUNK)
        for start in tqdm(starts, desc="checking ptx_dataset", leave=False, disable=None if len(starts) > 5 else True):
            self._check(start, num_embeddings)

    def _check(self, start: int, num_embeddings: int | None) -> None:
        rows = self.dataset.select(range(start, min(start + _CHUNK, len(self.dataset)))).to_list()
        template = template_source(self.tokenizer)
        for i, row in enumerate(rows, start):
            fault = options_fault(row)
            for name in self.columns:
                if name == "prompt" and row[name] == "":
                    continue  # its completion is predicted from the second token on
                fault = fault or value_fault(row[name], self.conversational, i, name)
                if fault is None and self.conversational:
                    fault = conversation_fault(row[name], template)
            if fault is not None:
                raise ValueError(f"`ptx_dataset` row {i}: {fault}")
        for i, (given, predicted) in enumerate(self._tokens(rows, start), start):
            fault = unknown_token(given + predicted, self.tokenizer, num_embeddings)
            if not predicted:
                fault = (
                    f"nothing is left to predict after the first {len(given)} tokens (`ptx_max_length` is "
                    f"{self.max_length}); filter or shorten it, or raise `ptx_max_length`."
                )
            if fault is not None:
                raise ValueError(f"`ptx_dataset` row {i}: {fault}")

    def batch(self, n: int, key: tuple[int, ...], device: torch.device | str = "cpu") -> Rollout:
        """Return `n` texts, chosen by the seed and `key` alone, so that a resumed run goes on with the same ones.

        Args:
            n: Number of texts; rows are drawn with replacement.
            key: Optimizer step and process.
            device: Device of the tensors.
        """
        generator = generator_of(self.seed, *key)
        rows = torch.randint(len(self.dataset), (n,), generator=generator).tolist()
        chosen = self.dataset.select(rows).to_list()
        prompts, completions = map(list, zip(*self._tokens(chosen), strict=True))
        return collate(prompts, completions, [True] * n, pad_token_id=self.tokenizer.pad_token_id, device=device)

    def _tokens(self, rows: list[dict[str, Any]], start: int = 0) -> list[tuple[list[int], list[int]]]:
        """Return the token ids of each row: the given ones, and the ones to be predicted.

        Args:
            rows: Rows of the dataset.
            start: Number of the first one, for messages.
        """
        texts = []
        for i, row in enumerate(rows, start):
            try:
                texts.append(self._rendered(row) if self.conversational else self._plain(row))
            except Exception as error:  # a template may raise anything
                raise ValueError(
                    f"`ptx_dataset` row {i}: the chat template refuses the conversation ({first_line(error)})."
                ) from None
        givens = encode([given for given, _ in texts], self.tokenizer, rendered=self.conversational)
        wholes = encode([whole for _, whole in texts], self.tokenizer, rendered=self.conversational)
        tokens = []
        for (given, _), given_ids, ids in zip(texts, givens, wholes, strict=True):
            ids = self._with_one_eos(ids)[: self.max_length]
            # The predicted text may change the last given token; that token is then predicted too, as in TRL.
            first = max(1, _common(given_ids, ids)) if given else 1
            tokens.append((ids[:first], ids[first:]))
        return tokens

    def _rendered(self, row: dict[str, Any]) -> tuple[str, str]:
        """Return the given part of a conversation, and the whole, as the chat template writes them."""
        options = {**self.chat_template_kwargs, **template_options(row)}
        messages = row[self.columns[-1]]
        if self.columns[0] == "prompt":
            messages = conversation(row["prompt"], messages)
        whole = self.tokenizer.apply_chat_template([plain(message) for message in messages], tokenize=False, **options)
        return render(row["prompt"], self.tokenizer, options) if self.columns[0] == "prompt" else "", str(whole)

    def _plain(self, row: dict[str, Any]) -> tuple[str, str]:
        """Return the given part of a text, and the whole, which ends with its row as in TRL's SFTTrainer."""
        given, eos = row.get("prompt", ""), self.tokenizer.eos_token or ""
        whole = given + row[self.columns[-1]]
        return given, whole if whole.endswith(eos) else whole + eos

    def _with_one_eos(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return ids[:-1] if not self.conversational and eos is not None and ids[-2:] == [eos, eos] else ids


def text_columns(dataset: Any) -> list[str]:
    """Return the columns of a dataset of texts: ["prompt", "completion"], ["messages"] or ["text"].

    Raises:
        TypeError, ValueError: as in `SupervisedData`, for faults that show without a model.
    """
    needed = "'text', 'messages', or 'prompt' and 'completion'"
    check_dataset(dataset, "ptx_dataset", f"columns {needed}")
    columns = set(dataset.column_names)
    for names in (["prompt", "completion"], ["messages"], ["text"]):
        if set(names) <= columns:
            return names
    sharegpt = "; " + SHAREGPT + ", and 'conversations' to 'messages'" if "conversations" in columns else ""
    raise ValueError(f"`ptx_dataset` has the columns {sorted(columns)}; it needs {needed}{sharegpt}.")


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the number of tokens at the beginning that two lists share."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
