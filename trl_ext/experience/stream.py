# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A streaming dataset as train set: rows by their position, so that a resumed run goes on where it stopped."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import torch
from datasets import IterableDataset

from trl_ext.processes import gather

from .prompt_checks import RowCheck, check_columns

_HEAD = 1000  # first rows that are checked before a run
_IDENTITY = 100  # first rows that tell one stream from another


class StreamRows(torch.utils.data.Dataset):
    """The rows that a run takes from a stream, by position; the stream begins anew, in its next epoch, where it ends.

    Every process reads the whole stream, a rollout at a time, and keeps its share. A position is found by reading from
    the beginning: that is exact for every stream that gives the same rows each time, also one shuffled in a buffer,
    whose `state_dict` would lose the rows in the buffer.

    Args:
        stream: The dataset. A shuffle must have a seed.
        num_rows: Rows of the whole run.
        rollout_size: Rows of a rollout over all processes.
        check: Checks the rows of every rollout.

    Attributes:
        first: The first row.
        column_names: Columns of the first row.
        identity: Tells the stream from others, by its first rows.

    Raises:
        ValueError: when the stream is empty, has a row that cannot be used, or differs between processes.
    """

    def __init__(self, stream: IterableDataset, num_rows: int, rollout_size: int, check: RowCheck):
        self.stream, self.num_rows, self.rollout_size = stream, num_rows, rollout_size
        self._check = check
        self._start, self._rows = -1, []  # type: tuple[int, list[dict[str, Any]]]
        self._position, self._iterator = 0, self._passes()
        head = list(itertools.islice(self._epoch(0), _HEAD))
        self._check_rows(head[:num_rows], 0)
        self.first, self.column_names, self.identity = head[0], list(head[0]), _digest(head[:_IDENTITY])
        if len(set(gather(self.identity))) > 1:
            raise ValueError(
                f"`{check.name}` is a stream whose rows differ from process to process; shuffle it with a seed, and do "
                "not split it by process: each one takes its share."
            )

    def __len__(self) -> int:
        return self.num_rows

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return rows of one rollout by their positions."""
        start = indices[0] - indices[0] % self.rollout_size
        if start != self._start:
            self._start, self._rows = start, self._read(start)
        return [self._rows[i - start] for i in indices]

    def _read(self, start: int) -> list[dict[str, Any]]:
        """Return the rollout that begins at a position, every row of it checked, on each process alike."""
        if start < self._position:
            self._position, self._iterator = 0, self._passes()
        end = start + self.rollout_size
        rows = list(itertools.islice(self._iterator, start - self._position, end - self._position))
        self._position = end
        self._check_rows(rows, start)
        return rows

    def _check_rows(self, rows: list[dict[str, Any]], start: int) -> None:
        self._check({name: [row.get(name) for row in rows] for name in rows[0]}, start)

    def _passes(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the stream in epoch 0, in epoch 1, and so on."""
        return itertools.chain.from_iterable(map(self._epoch, itertools.count()))

    def _epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        self.stream.set_epoch(epoch)
        row = None
        for row in self.stream:
            yield row
        if row is None:
            raise ValueError(
                f"`{self._check.name}` gives no rows when it is read again; make the stream of a function that opens "
                "its source each time."
            )


def check_stream(stream: IterableDataset, name: str, given: str) -> str:
    """Return the column of a stream's prompts; raise ValueError as `check_columns`, or for a stream without rows."""
    first = next(iter(stream), None)
    if first is None:
        raise ValueError(f"`{name}` is empty; give at least one row.")
    return check_columns(list(first), first, name, given)


def _digest(rows: list[dict[str, Any]]) -> str:
    text = json.dumps(rows, sort_keys=True, default=repr)
    return f"stream {hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
