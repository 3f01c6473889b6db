# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Batches that shrink when memory runs out."""

from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers.utils import logging

logger = logging.get_logger(__name__)


class MicroBatches:
    """Works in pieces, and halves their size for good whenever memory runs out.

    Args:
        size: Samples at a time to begin with.
        advice: Name of the setting of the first size, for the message.
        fixed: Never halve: with several processes, one that needs more passes would keep the others waiting.
    """

    def __init__(self, size: int, advice: str, *, fixed: bool = False):
        self.size = size
        self.advice = advice
        self.fixed = fixed

    def state_dict(self) -> dict[str, int]:
        """Return the size that a resumed run goes on with."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Put back what `state_dict` returned."""
        self.size = state["size"]

    def run(self, samples: Any, function: Callable[[Any], object], what: str) -> None:
        """Call `function` on consecutive pieces; a piece for which memory runs out is done again in halves.

        Args:
            samples: A sequence or tensor.
            function: Called with a piece; does its work wholly or not at all.
            what: The work, for the message: "sampling".

        Raises:
            RuntimeError: what `function` raises, out of memory included when a piece is a single sample.
        """
        start = 0
        while start < len(samples):
            piece = samples[start : start + self.size]
            if self.attempt(partial(function, piece), what, len(piece)):
                start += len(piece)

    def attempt(self, function: Callable[[], object], what: str, size: int | None = None) -> bool:
        """Call `function`; when memory runs out in it, halve the size.

        Args:
            function: To be called.
            what: The work, for the message: "sampling".
            size: Samples in the call; default: the current size.

        Returns:
            Whether the call succeeded. If not, the caller tries again in smaller pieces.

        Raises:
            RuntimeError: what `function` raises, out of memory included when there is nothing to halve.
        """
        tried = self.size if size is None else size
        try:
            function()
            return True
        except RuntimeError as error:
            if self.fixed or tried < 2 or not should_reduce_batch_size(error):
                raise
        # After the `except` block, since the traceback keeps the tensors of the failed attempt alive.
        clear_device_cache(garbage_collection=True)
        self.size = max(1, tried // 2)
        logger.warning(
            f"Out of memory {what} {tried} samples at a time; going on with {self.size}. To start with that, lower "
            f"`{self.advice}`."
        )
        return False
