# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions made of reward functions: sums, bounds, normalization, ensembles.

Each is a reward function itself, so they nest. A sample without a reward from any member gets `None`. Async members
run concurrently. `state_dict` contains the members' states. Of token rewards, bounds and aggregations apply to the sums
so far, and moments are those of the sums over all tokens, see `tokens`.
"""

import math
import numbers
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.messages.printable import brief
from trl_ext.text.rows import Text

from .base import SILENT, Batch, Ids, Reward, RewardTypeError, Texts, completion_text, is_stateful, reward_name
from .calling import call_rewards
from .moments import Moments, merge_over_processes
from .representation import constructor_repr
from .tokens import check_host, over_tokens, reward_sum, sums, weighted_sum


class Combination(ABC):
    """A reward function made of `members`, whose rewards a subclass combines in `combine`.

    Args:
        members: reward functions.
        name: name in logs.

    Raises:
        ValueError, TypeError: no member, or a member that cannot be called.
    """

    def __init__(self, members: Sequence[Callable], name: str):
        self.members: list[Any] = list(members)
        self.__name__ = name
        if not self.members:
            raise ValueError(f"'{name}' got no reward function: give it at least one.")
        for member in self.members:
            if not callable(member):
                raise TypeError(
                    f"'{name}' got {brief(member)} ({type(member).__name__}), which is no reward function: wrap the "
                    f"name of a model in PreferenceReward or ToxicityReward."
                )

    __repr__ = constructor_repr

    def __call__(self, prompts: Texts, completions: Texts, completion_ids: Ids = None, **columns: Any) -> list[Reward]:
        """Return N rewards."""
        batch = Batch.from_call(prompts, completions, completion_ids, columns)
        inside = replace(batch, services={**SILENT, **batch.services})
        rewards = self.combine(call_rewards(self.members, inside), inside)
        check_host(self.__name__, batch.services, rewards)
        return rewards

    @abstractmethod
    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return N rewards, made of N rewards of each member: numbers, lists of one a token, or None."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the stateful members, by position; JSON-able."""
        return {"members": {str(i): m.state_dict() for i, m in enumerate(self.members) if is_stateful(m)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        for i, member_state in state["members"].items():
            self.members[int(i)].load_state_dict(member_state)


def _map(fn: Callable[[float], float], rewards: list[Reward]) -> list[Reward]:
    return [None if reward is None else over_tokens(lambda row: fn(row[0]), [reward]) for reward in rewards]


def _present(row: Sequence[Reward]) -> list[float | list[float]]:
    return [reward for reward in row if reward is not None]


def check_weights(option: str, weights: Sequence[Any]) -> list[float]:
    """Return `weights` as floats.

    Raises:
        ValueError, TypeError: a weight is no number, infinite, or NaN, which would silently leave out its reward.
    """
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
            raise TypeError(f"`{option}` has {brief(weight)} ({type(weight).__name__}): give numbers.")
        if not abs(float(weight)) <= torch.finfo(torch.float32).max:
            raise ValueError(f"`{option}` has {weight}: give finite numbers, 0 for a reward that is only logged.")
    return [float(weight) for weight in weights]


class WeightedSum(Combination):
    """sum_k weights_k * reward_k over the members that have a reward for the sample.

    Args:
        members: K reward functions.
        weights: K numbers; by default 1 each.
        name: name in logs.

    Raises:
        ValueError: the number of weights is not that of the members, or a weight is not finite.
    """

    def __init__(
        self, members: Sequence[Callable], weights: Sequence[float] | None = None, *, name: str = "weighted_sum"
    ):
        super().__init__(members, name)
        self.weights = [1.0] * len(self.members) if weights is None else check_weights("weights", weights)
        if len(self.weights) != len(self.members):
            raise ValueError(
                f"WeightedSum got {len(self.weights)} weights for {len(self.members)} reward functions: give one each."
            )

    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return the weighted sum of each sample's rewards."""
        totals: list[Reward] = []
        for row in zip(*rewards, strict=True):
            weights = [weight for weight, reward in zip(self.weights, row, strict=True) if reward is not None]
            totals.append(weighted_sum(_present(row), weights) if weights else None)
        return totals


class Summed(Combination):
    """The reward as one number a completion: of token rewards, their sum.

    For hosts that take one number a completion, such as TRL's GRPOTrainer, and for a comparison of the two.

    Args:
        reward: reward function.
        name: name in logs, by default "summed_" and the function's.
    """

    def __init__(self, reward: Callable, *, name: str | None = None):
        super().__init__([reward], name or f"summed_{reward_name(reward)}")

    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return the sum of each sample's rewards."""
        return [*sums(rewards[0])]


class Clipped(Combination):
    """The reward, limited to [low, high].

    Args:
        reward: reward function.
        low: least reward; `None` means no limit.
        high: greatest reward; `None` means no limit.
        name: name in logs, by default "clipped_" and the function's.

    Raises:
        ValueError: no limit, or low above high.
    """

    def __init__(
        self, reward: Callable, low: float | None = None, high: float | None = None, *, name: str | None = None
    ):
        super().__init__([reward], name or f"clipped_{reward_name(reward)}")
        self.low = float("-inf") if low is None else low
        self.high = float("inf") if high is None else high
        if not self.low <= self.high or (low is None and high is None):
            raise ValueError(f"Clipped got low={low} and high={high}: give at least one limit, low <= high.")

    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return each reward, limited to [low, high]."""
        return _map(lambda reward: min(max(reward, self.low), self.high), rewards[0])


class LogSigmoid(Combination):
    """log sigmoid((reward - center) / scale): at most 0, and nearly flat far above `center`.

    "Transforming and Combining Rewards for Aligning Large Language Models" (Wang et al. 2024, arXiv 2402.00742), where
    `center` is the reward of an acceptable answer; their sum over several rewards is a soft AND.

    Args:
        reward: reward function.
        center: the reward that gives log 0.5.
        scale: distance from `center` over which differences between rewards count; positive.
        name: name in logs, by default "log_sigmoid_" and the function's.

    Raises:
        ValueError: `scale` is not positive, or a number is not finite.
    """

    def __init__(self, reward: Callable, *, center: float = 0.0, scale: float = 1.0, name: str | None = None):
        super().__init__([reward], name or f"log_sigmoid_{reward_name(reward)}")
        if not 0 < scale < math.inf or not math.isfinite(center):
            raise ValueError(f"LogSigmoid got center={center} and scale={scale}: give finite numbers, scale > 0.")
        self.center, self.scale = center, scale

    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return log sigmoid((reward - center) / scale) of each reward."""

        def bounded(reward: float) -> float:
            centred = torch.tensor((reward - self.center) / self.scale, dtype=torch.float64)
            return torch.nn.functional.logsigmoid(centred).item()

        return _map(bounded, rewards[0])


class PAR(Combination):
    """Preference as reward: mean over m of sigmoid(reward(completion) - reward(reference_m)), in (0, 1).

    "Reward Shaping to Mitigate Reward Hacking in RLHF" (Fu et al. 2025, arXiv 2502.18770). The reward saturates for
    completions far better than the references. A function with state would count the references too: put
    `RunningNormalization` outside.

    Args:
        reward: reward function; also called on the references, with their token ids only if `tokenizer` is given.
        reference_column: dataset column with a reference completion, or a list of them, per sample: strings or
            conversations. A string stands for one message where completions are conversations. A sample with no
            reference (an empty list or `None`) gets `None`.
        tokenizer: tokenizes the references; only for functions that read `completion_ids`.
        name: name in logs, by default "par_" and the function's.

    Raises:
        TypeError: at the first use: the dataset has no such column.
    """

    def __init__(
        self,
        reward: Callable,
        *,
        reference_column: str = "reference_completion",
        tokenizer: PreTrainedTokenizerBase | None = None,
        name: str | None = None,
    ):
        super().__init__([reward], name or f"par_{reward_name(reward)}")
        self.reference_column, self.tokenizer = reference_column, tokenizer

    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return the mean sigmoid of each reward less its references' rewards."""
        if self.reference_column not in batch.columns:
            raise RewardTypeError(
                f"'{self.__name__}' compares with the column '{self.reference_column}', but there is only "
                f"{sorted(batch.columns)}: add it to the dataset or name another by reference_column=."
            )
        owners, references = [], []
        for i, value in enumerate(batch.columns[self.reference_column]):
            for reference in _as_completions(value, like=batch.completions[i]):
                owners.append(i)
                references.append(reference)
        scored = self._score(references, batch.select(owners)) if references else []
        compared: list[list[float]] = [[] for _ in rewards[0]]
        for i, reference_reward in zip(owners, sums(scored), strict=True):
            if reference_reward is not None:
                compared[i].append(reference_reward)
        return [
            None if own is None or not others else over_tokens(partial(_preferred, others), [own])
            for own, others in zip(rewards[0], compared, strict=True)
        ]

    def _score(self, references: list[Text], batch: Batch) -> list[Reward]:
        ids = None
        if self.tokenizer is not None:
            texts = [completion_text(reference) for reference in references]
            ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        services = {key: SILENT.get(key, value) for key, value in batch.services.items()}
        batch = replace(batch, completions=references, completion_ids=ids, services=services)
        return call_rewards(self.members, batch)[0]


def _preferred(references: list[float], row: list[float]) -> float:
    differences = torch.tensor([row[0] - reference for reference in references], dtype=torch.float64)
    return statistics.fmean(differences.sigmoid().tolist())


def _as_completions(value: Any, like: Text) -> list[Text]:
    """Return the reference completions in one row of the column, in the format of the completion `like`."""
    if value is None:
        return []
    one = isinstance(value, str) or (len(value) > 0 and isinstance(value[0], dict))
    completions = [value] if one else list(value)
    if isinstance(like, str):
        return [completion_text(completion) for completion in completions]
    return [[{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in completions]


class RunningNormalization(Combination):
    """(reward - mean) / std of all rewards so far, over all processes.

    A batch is normalized by the moments of the batches before it, which are the same on every process and independent
    of the other samples in the batch; the first batch is normalized by its own, on each process. Until two different
    rewards have been seen, rewards are only centred.

    Called outside `RewardRunner`, under torch.distributed, every process must call it equally often.

    Args:
        reward: reward function.
        center: subtract the mean; otherwise rewards are only scaled and keep their sign.
        clip: limit of the normalized reward's absolute value; `None` means no limit.
        name: name in logs, by default "normalized_" and the function's.

    Raises:
        ValueError: `clip` is not positive.
    """

    def __init__(
        self, reward: Callable, *, center: bool = True, clip: float | None = None, name: str | None = None
    ) -> None:
        super().__init__([reward], name or f"normalized_{reward_name(reward)}")
        if clip is not None and not clip > 0:
            raise ValueError(f"RunningNormalization got clip={clip}: it must be positive, or None.")
        self.center, self.clip = center, clip
        self.moments, self.pending = Moments(), Moments()
        self.synchronize_each_call = True

    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return the normalized rewards, and count the raw ones in."""
        self.pending = self.pending.merge(Moments.of([reward_sum(reward) for reward in _present(rewards[0])]))
        known = self.moments if self.moments.n else self.pending
        shift, spread = known.mean if self.center else 0.0, known.std if known.std > 1e-8 else 1.0
        limit = float("inf") if self.clip is None else self.clip
        if self.synchronize_each_call:
            self.synchronize()
        return _map(lambda reward: min(max((reward - shift) / spread, -limit), limit), rewards[0])

    def synchronize(self) -> None:
        """Add the rewards since the last call, on all processes, to the moments. A collective."""
        self.moments = self.moments.merge(merge_over_processes(self.pending))
        self.pending = Moments()

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able state for a checkpoint."""
        return {**super().state_dict(), "moments": list(self.moments), "pending": list(self.pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.moments, self.pending = Moments(*state["moments"]), Moments(*state["pending"])


# How an ensemble aggregates the members' rewards for a sample, by name; `k` weighs their disagreement.
AGGREGATIONS: dict[str, Callable[[list[float], float], float]] = {
    "mean": lambda rewards, k: statistics.fmean(rewards),
    "min": lambda rewards, k: min(rewards),
    "mean_minus_std": lambda rewards, k: statistics.fmean(rewards) - k * statistics.pstdev(rewards),
    "mean_minus_var": lambda rewards, k: statistics.fmean(rewards) - k * statistics.pvariance(rewards),
}


class Ensemble(Combination):
    """One reward from several reward models, which is harder to hack than the reward of one.

    "Reward Model Ensembles Help Mitigate Overoptimization" (Coste et al. 2023, arXiv 2310.02743). Members should have
    one scale. Logs `<name>/disagreement`, the mean over samples of the members' standard deviation: it grows as the
    policy leaves the members' training data.

    Args:
        members: reward functions, at least two.
        aggregation: "mean", "min" (the worst case), "mean_minus_std", or "mean_minus_var" (the paper's
            uncertainty-weighted optimization, whose penalty grows with the square of the disagreement).
        k: factor of the standard deviation, or variance, that is subtracted.
        name: name in logs.

    Raises:
        ValueError: fewer than two members, an unknown `aggregation`, or a negative `k`.
    """

    def __init__(
        self,
        members: Sequence[Callable],
        aggregation: str = "mean",
        *,
        k: float = 1.0,
        name: str = "ensemble",
    ):
        super().__init__(members, name)
        if len(self.members) < 2:
            raise ValueError("Ensemble got one reward function: give at least two.")
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation is {aggregation!r}: choose one of {', '.join(AGGREGATIONS)}.")
        if not 0 <= k < math.inf:
            raise ValueError(f"Ensemble got k={k}: give a finite number, 0 or more.")
        self.aggregation, self.k = aggregation, k

    def combine(self, rewards: list[list[Reward]], batch: Batch) -> list[Reward]:
        """Return one reward a sample, of the members that scored it."""
        rows = [_present(row) for row in zip(*rewards, strict=True)]
        spreads = [statistics.pstdev([reward_sum(reward) for reward in row]) for row in rows if len(row) > 1]
        log_metric = batch.services.get("log_metric")
        if log_metric is not None and spreads:
            log_metric(f"{self.__name__}/disagreement", statistics.fmean(spreads))
        aggregate = AGGREGATIONS[self.aggregation]
        return [over_tokens(lambda row: aggregate(row, self.k), row) if row else None for row in rows]
