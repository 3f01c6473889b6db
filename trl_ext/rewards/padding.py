# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Batches of token ids that a sequence classifier reads as it reads each row alone."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Row = dict[str, list[int]]

# The largest difference that rounding may make, as a fraction of the larger of 1 and the largest score. 4-bit kernels
# and bfloat16 stay below it; a score that is read at a wrong token does not.
TOLERANCE = 0.05

_configuring = threading.Lock()


@contextmanager
def padding_token(config: Any, rows: Sequence[Row]) -> Iterator[int]:
    """A token to pad `rows` with, under which a model reads each of them where it reads that row alone.

    Decoders read the last token that is not `config.pad_token_id`, whatever the attention mask says. Padding with that
    very token changes nothing, since the model also skips it at the end of a row alone. A model without a padding
    token (None), or with one that is no token (-1 in some configurations), reads the last token of a row alone; for a
    batch it is given a padding token that no row ends in. The configuration is as it was afterwards.
    """
    text, ends = config.get_text_config(), {row["input_ids"][-1] for row in rows}
    free = next(token for token in range(len(ends) + 1) if token not in ends)
    with _configuring:  # another thread must not take what is set here for the model's own
        own, size = text.pad_token_id, getattr(text, "vocab_size", None)
        if getattr(config, "is_encoder_decoder", False):
            # These read the last EOS, and padding must not look like one.
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
    """Tensors (B, L) of rows of token ids, padded on the right, with their attention mask."""
    length = max(len(row["input_ids"]) for row in rows)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
    if any("token_type_ids" in row for row in rows):
        columns["token_type_ids"] = []
    for row in rows:
        ids, missing = row["input_ids"], length - len(row["input_ids"])
        columns["input_ids"].append(ids + [token] * missing)
        columns["attention_mask"].append([1] * len(ids) + [0] * missing)
        if "token_type_ids" in columns:
            columns["token_type_ids"].append(row.get("token_type_ids", [0] * len(ids)) + [type_token] * missing)
    return {key: torch.tensor(values) for key, values in columns.items()}


def padding_matters(forward: Callable[[list[Row]], Tensor], rows: Sequence[Row]) -> bool:
    """Whether the model scores a padded row otherwise than alone, as those do that take no account of the mask.

    Args:
        forward: scores rows, as (B, labels).
        rows: with one length there is nothing to compare.
    """
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    longer = ordered[len(ordered) // 2] if len(ordered) > 8 else ordered[-1]
    short = [row for row in ordered[:3] if len(row["input_ids"]) < len(longer["input_ids"])]
    if not short:
        return False
    alone, padded = torch.cat([forward([row]) for row in short]), forward([longer, *short])[1:]
    return bool((alone - padded).abs().max() > TOLERANCE * max(1.0, alone.abs().max().item()))


def alike(rows: Sequence[Row], indices: Sequence[int], *, one_length: bool, eos: int | None) -> list[list[int]]:
    """`indices` in groups whose rows may share a batch, the order kept within each.

    Args:
        one_length: only rows of one length may.
        eos: the token that encoder-decoders read the last of; they take no rows with different numbers of it.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i in indices:
        ids = rows[i]["input_ids"]
        key = (len(ids) if one_length else 0, 0 if eos is None else ids.count(eos))
        groups.setdefault(key, []).append(i)
    return list(groups.values())
