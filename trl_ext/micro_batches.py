# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Batches that are cut where lengths differ, and shrink when memory runs out."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)

# A further pass over a model costs as much time as so many tokens. On a GPU the weights are read once more, in the time
# in which it multiplies them with about 250 tokens; on a CPU it is the overhead of many small operations.
PASS_COST = {"cpu": 48}
PASS_COST_ELSEWHERE = 256
# A pass that trains writes the gradient of every trained weight and adds it to that of the passes before: as much time
# as so many tokens, times the trained weights for each weight of the layers.
GRADIENT_COST = {"cpu": 24}
GRADIENT_COST_ELSEWHERE = 160


class MicroBatches:
    """Works in pieces, and halves their size for good whenever memory runs out.

    Args:
        size: Samples at a time to begin with.
        advice: Name of the setting of the first size, for the message.
        fixed: Never halve and never cut: with several processes, one that needs more passes would keep the others
            waiting.
        trained: Trained weights for each weight of the layers that the samples pass through.
        checkpoint: Has every layer of the models recompute its activations from now on, and returns False if every
            layer does already. Called where memory does not suffice for learning from one sample: recomputing costs a
            third more time for good, and smaller pieces cost less, so that it comes last.
    """

    def __init__(
        self,
        size: int,
        advice: str,
        *,
        fixed: bool = False,
        trained: float = 0.0,
        checkpoint: Callable[[], bool] | None = None,
    ):
        self.size = size
        self.advice = advice
        self.fixed = fixed
        self.trained = trained
        self.checkpoint = checkpoint

    def state_dict(self) -> dict[str, int]:
        """Return the size that a resumed run goes on with; it finds again that layers have to be checkpointed."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Put back what `state_dict` returned."""
        self.size = state["size"]

    def split(self, rows: Tensor, lengths: Tensor) -> list[Tensor]:
        """Return consecutive pieces of at most `size` samples, cut further where that saves padding.

        Args:
            rows: Numbers of the samples, in the order of their lengths, (n,).
            lengths: Tokens of the prompt and of the completion of every sample, (N, 2).
        """
        if self.fixed:
            return list(rows.split(self.size))
        cost = round(
            PASS_COST.get(rows.device.type, PASS_COST_ELSEWHERE)
            + GRADIENT_COST.get(rows.device.type, GRADIENT_COST_ELSEWHERE) * self.trained
        )
        pieces: list[Tensor] = []
        for part in rows.split(self.size):
            pieces.extend(part.split(cheapest_pieces(lengths[part].tolist(), cost)))
        return pieces

    def run(self, samples: Any, function: Callable[[Any], object], what: str, lengths: Tensor | None = None) -> None:
        """Call `function` on consecutive pieces; a piece for which memory runs out is done again in halves.

        Args:
            samples: A sequence or tensor.
            function: Called with a piece; does its work wholly or not at all.
            what: The work, for the message: "sampling".
            lengths: With them the pieces are those of `split`.

        Raises:
            RuntimeError: what `function` raises, out of memory included when a piece is a single sample.
        """
        start = 0
        while start < len(samples):
            part = samples[start : start + self.size]
            for piece in [part] if lengths is None else self.split(part, lengths):
                if not self.attempt(partial(function, piece), what, len(piece)):
                    break
                start += len(piece)

    def attempt(
        self, function: Callable[[], object], what: str, size: int | None = None, *, learns: bool = False
    ) -> bool:
        """Call `function`; when memory runs out in it, halve the size, or checkpoint more layers.

        Args:
            function: To be called.
            what: The work, for the message: "sampling".
            size: Samples in the call; default: the current size.
            learns: Whether it makes backward passes, in which checkpointing saves memory.

        Returns:
            Whether the call succeeded. If not, the caller tries again in smaller pieces.

        Raises:
            RuntimeError: what `function` raises, out of memory included when there is nothing to halve and no layer to
                checkpoint.
        """
        tried = self.size if size is None else size
        try:
            function()
            return True
        except RuntimeError as error:
            if self.fixed or not should_reduce_batch_size(error):
                raise
            if tried < 2 and not (learns and self.checkpoint is not None and self.checkpoint()):
                raise
        # After the `except` block, since the traceback keeps the tensors of the failed attempt alive.
        clear_device_cache(garbage_collection=True)
        if tried < 2:
            logger.warning(
                f"Out of memory {what} one sample at a time; going on with checkpoints at every layer. To start with "
                f"that, set `gradient_checkpointing` and `{self.advice}` 1, and leave `every_n_layers` out."
            )
            return False
        self.size = max(1, tried // 2)
        logger.warning(
            f"Out of memory {what} {tried} samples at a time; going on with {self.size}. To start with that, lower "
            f"`{self.advice}`."
        )
        return False


def cheapest_pieces(lengths: Sequence[tuple[int, int]], pass_cost: int) -> list[int]:
    """Return the sizes of the consecutive pieces of samples that take the least time.

    A piece of n samples costs n times the columns of its padded batch, which has room for the longest prompt and the
    longest completion, and `pass_cost` tokens. The least sum over pieces is found by dynamic programming.

    Args:
        lengths: Tokens of the prompt and of the completion of each sample.
        pass_cost: Cost of a piece, in tokens.
    """
    best, starts = [0], [0]  # least cost of the first samples, and where their last piece begins
    for end in range(1, len(lengths) + 1):
        prompt = completion = 0
        options = []
        for start in reversed(range(end)):
            prompt, completion = max(prompt, lengths[start][0]), max(completion, lengths[start][1])
            options.append((best[start] + (end - start) * (prompt + completion) + pass_cost, start))
        cost, start = min(options)
        best.append(cost)
        starts.append(start)
    sizes, end = [], len(lengths)
    while end > 0:
        sizes.append(end - starts[end])
        end = starts[end]
    return sizes[::-1]
