# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`LengthDebiased`: a reward without its linear dependence on the completion's length."""

from collections.abc import Callable
from typing import Any

from .base import Batch, Reward, RewardValueError, reward_name
from .combine import Combination
from .moments import LineMoments, merge_over_processes
from .tokens import sums, weighted_sum


class LengthDebiased(Combination):
    """reward - slope * (length - mean length), with the least-squares line of reward over completion length in tokens.

    Reward models favour long answers, and policies learn that first ("A Long Way to Go: Investigating Length
    Correlations in RLHF", Singhal et al. 2023, arXiv 2310.03716). The line is fitted to all samples so far, over all
    processes. A batch is corrected by the line through the batches before it, which is the same on every process and
    independent of the other samples in the batch. Before `min_samples` samples nothing is corrected, because a slope
    through a few samples is noise. The mean reward does not change.

    A true advantage of long answers is removed too: where length is part of the task, use a length rule. Of token
    rewards, the line is that of their sums, and the last token bears the correction.

    Logs `<name>/slope` (reward per token) and `<name>/length_correlation`, both before the correction.

    Called outside `RewardRunner`, under torch.distributed, every process must call it equally often.

    Args:
        reward: reward function.
        min_samples: samples, over all processes, before the line is used; at least 2.
        name: name in logs, by default "debiased_" and the function's.

    Raises:
        ValueError: `min_samples` below 2; when called: no `completion_ids`.
    """

    def __init__(self, reward: Callable, *, min_samples: int = 64, name: str | None = None):
        super().__init__([reward], name or f"debiased_{reward_name(reward)}")
        if min_samples < 2:
            raise ValueError(f"LengthDebiased got min_samples={min_samples}: a line needs at least 2.")
        self.min_samples = min_samples
        self.line, self.pending = LineMoments(), LineMoments()
        self.synchronize_each_call = True

    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return the rewards without their linear dependence on length, and count the raw ones in."""
        if batch.completion_ids is None:
            raise RewardValueError(f"'{self.__name__}' needs the completions' tokens: pass `completion_ids`.")
        lengths = [float(len(ids)) for ids in batch.completion_ids]
        points = [(length, r) for length, r in zip(lengths, sums(rewards[0]), strict=True) if r is not None]
        self.pending = self.pending.merge(LineMoments.of(points))
        slope, mean_length = 0.0, self.line.x
        if self.line.n >= self.min_samples:
            slope = self.line.slope
            self._log(batch)
        if self.synchronize_each_call:
            self.synchronize()
        shifts = [-slope * (length - mean_length) for length in lengths]
        corrected = zip(shifts, rewards[0], strict=True)
        return [None if r is None else weighted_sum([r, shift], [1.0, 1.0]) for shift, r in corrected]

    def _log(self, batch: Batch) -> None:
        log_metric = batch.services.get("log_metric")
        if log_metric is not None:
            log_metric(f"{self.__name__}/slope", self.line.slope)
            log_metric(f"{self.__name__}/length_correlation", self.line.correlation)

    def synchronize(self) -> None:
        """Add the samples since the last call, on all processes, to the line. A collective."""
        self.line = self.line.merge(merge_over_processes(self.pending))
        self.pending = LineMoments()

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able state for a checkpoint."""
        return {**super().state_dict(), "line": list(self.line), "pending": list(self.pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.line, self.pending = LineMoments(*state["line"]), LineMoments(*state["pending"])
