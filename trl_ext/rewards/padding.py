# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Batches of token ids that a sequence classifier scores like each row alone."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Row = dict[str, list[int]]

# Largest difference by rounding, as a fraction of the larger of 1 and the largest score. 4-bit kernels and bfloat16
# stay below it; a score that is read at a wrong token does not.
TOLERANCE = 0.05

_configuring = threading.Lock()


@contextmanager
def padding_token(config: Any, rows: Sequence[Row]) -> Iterator[int]:
    """Yield a token to pad `rows` with, so that a model reads its score at the same token as in each row alone.

    Decoders read the last token that is not `config.pad_token_id` and ignore the attention mask. Padding with that
    token changes nothing, since the model also skips it at the end of a row alone. A model without a padding token
    (None), or with an invalid one (-1 in some configurations), reads the last token of a row alone; for the length of
    the block its configuration gets a padding token that no row ends in.
    """
    text, ends = config.get_text_config(), {row["input_ids"][-1] for row in rows}
    free = next(token for token in range(len(ends) + 1) if token not in ends)
    with _configuring:  # another thread must not take this token for the model's own
        own, size = text.pad_token_id, getattr(text, "vocab_size", None)
        if getattr(config, "is_encoder_decoder", False):
            # Encoder-decoders read the last EOS, so padding must be another token.
            eos = text.eos_token_id
            yield own if own is not None and own != eos else int(eos == 0)
        elif own is not None and own >= 0 and (size is None or own < size):
            yield own
        else:
            text.pad_token_id = free
            try:
                yield free
            finally:
                text.pad_token_id = own


def pad(rows: Sequence[Row], token: int, type_token: int = 0) -> dict[str, Tensor]:
    """Return tensors (B, L) of rows of token ids, padded on the right, with their attention mask."""

    def column(values: Iterable[list[int]], padding: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=padding)

    ids = [row["input_ids"] for row in rows]
    columns = {"input_ids": column(ids, token), "attention_mask": column(([1] * len(row) for row in ids), 0)}
    if any("token_type_ids" in row for row in rows):
        types = (row.get("token_type_ids", [0] * len(row["input_ids"])) for row in rows)
        columns["token_type_ids"] = column(types, type_token)
    return columns


def padding_matters(forward: Callable[[list[Row]], Tensor], rows: Sequence[Row]) -> bool:
    """Return whether padding changes a row's score, as it does in models that ignore the attention mask.

    Args:
        forward: scores rows, as (B, labels).
        rows: token ids; rows of one length are not compared.
    """
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    longer = ordered[len(ordered) // 2] if len(ordered) > 8 else ordered[-1]
    short = [row for row in ordered[:3] if len(row["input_ids"]) < len(longer["input_ids"])]
    if not short:
        return False
    alone, padded = torch.cat([forward([row]) for row in short]), forward([longer, *short])[1:]
    return bool((alone - padded).abs().max() > TOLERANCE * max(1.0, alone.abs().max().item()))


def alike(rows: Sequence[Row], indices: Sequence[int], *, one_length: bool, eos: int | None) -> list[list[int]]:
    """Return `indices` in groups whose rows may share a batch, in their order.

    Args:
        one_length: whether only rows of one length may share a batch.
        eos: EOS token of an encoder-decoder, whose batches must have one number of EOS tokens in every row.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i in indices:
        ids = rows[i]["input_ids"]
        key = (len(ids) if one_length else 0, 0 if eos is None else ids.count(eos))
        groups.setdefault(key, []).append(i)
    return list(groups.values())
