# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`RewardRunner`: calls reward functions on a batch, retries and skips failed samples, and sums the rewards."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedTokenizerBase

from trl_ext.text.rows import Text

from .base import (
    JUDGE,
    OWN_COLUMNS,
    REWARD,
    Batch,
    Synchronized,
    check_state,
    is_stateful,
    iter_parts,
    keeps_statistics,
    reward_name,
    said_of,
)
from .combine import check_weights
from .constraints import Constraints
from .failures import Failures, shown
from .given import RewardSource, as_function, one_each, scorers, unique_names
from .logged import CallLog, combined
from .retry import BACKOFF_SECONDS, CallResult, members_of, run_rewards
from .sharing import reads_any, shares_base
from .tokens import sums, token_tensor


class Scores(NamedTuple):
    """The rewards of N completions by F functions.

    Attributes:
        total: (N,) float32, weighted sum over the functions that have a reward, without those that have a bound; 0
            where `valid` is false.
        per_function: (N, F) float32, unweighted; NaN where a function returned `None` or failed.
        valid: (N,) bool, false where no function has a reward, or a function failed.
        metrics: means of the values that the functions logged by `log_metric` on this process; the largest or smallest
            value of a name that ends in `/max` or `/min`.
        extra: columns that the functions logged by `log_extra`, N values each; `None` where they failed.
        weights: number of samples behind each metric, for a mean over processes.
        learned: (N,) float32, what a policy learns from where functions have bounds (`Constraints`); None: the total.
        tokens: (N, C) float32, what it learns from on the tokens that earn it, the last ones for rewards without tokens
            of their own; None where no function gives token rewards.
        token_functions: names of the functions that gave token rewards; their `per_function` is the sum.
    """

    total: Tensor
    per_function: Tensor
    valid: Tensor
    metrics: dict[str, float]
    extra: dict[str, list]
    weights: dict[str, float] = {}  # noqa: RUF012 (never changed)
    learned: Tensor | None = None
    tokens: Tensor | None = None
    token_functions: tuple[str, ...] = ()


class RewardRunner:
    """Scores completions with one or several reward functions.

    Samples that a function failed on are retried, `retries` times: together where it returned exceptions in the place
    of their rewards, each alone where a call raised. Samples that still fail are skipped, with a warning. A function
    that breaks its contract (wrong number of rewards, NaN, not a number, a missing column) is refused at once. Async
    functions run during the others. Every function gets lists of its own.

    Args:
        reward_funcs: one or a list of: a reward function; a model, or the name of one, for `PreferenceReward`.
        weights: one per function; by default 1 each.
        processing_classes: tokenizers of the models, one per function or one for all; by default those under the
            models' names. `None` for functions.
        retries: number of retries for a sample that failed.
        backoff: seconds before the first retry, doubled before each further one; at most a minute.
        timeout: seconds that a call may take; `None` means no limit. A longer call counts as failed. Functions that run
            the policy's own weights, such as reward adapters on its base, have no limit.
        max_reward_failures: the run stops when a function fails on more than this fraction of the batch.
        constraints: bounds on the means of some of the functions, as `reward_constraints` of `PPOConfig`.
        clip_range: least and greatest total of a completion; with token rewards, of the sums so far (`over_tokens`).
        chat_template_kwargs: further variables for the models' chat templates.
        device: device of the models given here; by default that of a loaded model, the accelerator for a name.
        policy: model that is trained, to find the functions that share weights with it.
        kind: what messages call a function: `REWARD` or `JUDGE`.

    Attributes:
        names: names of the functions in logs, made unique by `_2`, `_3`, ...
        constraints: the multipliers of the functions that have a bound.
        warned: what a warning has been given for, which is not repeated.

    Raises:
        ValueError, TypeError: no function, a function that cannot be called, a number of weights or tokenizers other
            than that of the functions, an option out of range, a model that is no reward model.
    """

    def __init__(
        self,
        reward_funcs: RewardSource | Sequence[RewardSource],
        *,
        weights: Sequence[float] | None = None,
        processing_classes: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None = None,
        retries: int = 2,
        backoff: float = BACKOFF_SECONDS,
        timeout: float | None = None,
        max_reward_failures: float = 0.1,
        constraints: Sequence[str] | None = None,
        clip_range: tuple[float, float] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        device: str | torch.device | None = None,
        policy: Module | None = None,
        kind: str = REWARD,
    ):
        sources = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        if not sources:
            raise ValueError("reward_funcs is empty: give at least one reward function.")
        self.weights = torch.tensor(_read_weights(weights, len(sources)), dtype=torch.float32)
        _check_options(retries, backoff, timeout, max_reward_failures, clip_range)
        tokenizers = one_each(processing_classes, len(sources))
        self.reward_funcs: list[Any] = [
            as_function(source, tokenizer, chat_template_kwargs, device)
            for source, tokenizer in zip(sources, tokenizers, strict=True)
        ]
        for scorer in scorers(self.reward_funcs):
            scorer.load()  # a wrong name then fails now, not after the first generation
        self.names = unique_names([reward_name(fn) for fn in self.reward_funcs])
        self.constraints = Constraints(constraints or (), self.names, self.weights.tolist())
        self.retries, self.backoff, self.timeout, self.kind = retries, backoff, timeout, kind
        self.max_reward_failures = max_reward_failures
        self.clip_range = clip_range
        self._warned_not_applicable = False
        self.warned: set[str] = set()
        self._untimed = self._find_untimed(policy) if timeout is not None else frozenset()
        parts = [part for fn in self.reward_funcs for part in iter_parts(fn)]
        for fn in self.reward_funcs:
            check_state(fn, kind)
        self._synchronized = [part for part in parts if isinstance(part, Synchronized)]
        moving = list(filter(keeps_statistics, self.reward_funcs))
        if kind == JUDGE and moving:
            raise ValueError(
                f"Judge '{reward_name(moving[0])}' measures in units that move with the training, so its "
                "scores of two evaluations cannot be compared; judge with the function inside it."
            )

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: list[list[int]],
        columns: dict[str, list],
        *,
        trainer_state: Any = None,
        on_progress: Callable[[int], None] | None = None,
        update_state: bool = True,
        failures: Failures | None = None,
        together: Callable[[str], AbstractContextManager] = nullcontext,
    ) -> Scores:
        """Score N completions.

        Args:
            prompts: N strings or conversations.
            completions: N strings or conversations.
            completion_ids: N lists of token ids.
            columns: the dataset's columns, N values each.
            trainer_state: passed on to the functions.
            on_progress: called with the number of newly scored samples, N * F in all. Async functions may call it from
                another thread.
            update_state: whether functions keep state updates from this batch; false for evaluation.
            failures: counts the failures of several batches together (`count_failures`), which the caller warns of; by
                default those of this batch are compared with `max_reward_failures` alone.
            together: context in which all processes fail if one fails, before the next collective.

        Raises:
            RuntimeError: a function failed on too many samples.
            ValueError, TypeError: lists of different lengths, or a function broke its contract.
        """
        columns = {key: values for key, values in columns.items() if key not in OWN_COLUMNS}
        lengths = {key: len(values) for key, values in columns.items()}
        lengths.update(prompts=len(prompts), completions=len(completions), completion_ids=len(completion_ids))
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The batch to score has lists of different lengths, {lengths}: give one value a sample.")
        state = None if update_state else self.state_dict()
        batch = Batch(prompts, completions, completion_ids, columns, {"trainer_state": trainer_state})
        counted = self.count_failures(len(batch)) if failures is None else failures
        with together("Scoring"), said_of(self.kind, counted.hint), self._synchronizing_once():
            results = self._call_all(batch, counted.allowed, on_progress or (lambda n: None)) if prompts else []
            for name, result in zip(self.names, results, strict=False):
                counted.add(name, result.failures, batch)
            if failures is None:
                counted.warn()
        if state is not None:
            self.load_state_dict(state)
        else:
            for part in self._synchronized:
                part.synchronize()
        return self._scores(results, batch, warns=failures is None)

    @contextmanager
    def _synchronizing_once(self) -> Iterator[None]:
        """Let no call of a function end with `synchronize` in this block, and calls outside of it as before."""
        before = [part.synchronize_each_call for part in self._synchronized]
        for part in self._synchronized:
            part.synchronize_each_call = False
        try:
            yield
        finally:
            # A late call goes on behind its time limit, and must start no collective.
            for part, each in zip(self._synchronized, before if self.timeout is None else (), strict=False):
                part.synchronize_each_call = each

    def count_failures(self, count: int, *, of_beginnings: bool = False) -> Failures:
        """Return an empty count of failures on `count` samples, with the limit `max_reward_failures`."""
        options = {"retries": self.retries, "kind": self.kind, "of_beginnings": of_beginnings}
        return Failures(count, self.max_reward_failures, **options)  # type: ignore[arg-type]

    def _find_untimed(self, policy: Module | None) -> frozenset[int]:
        """Return the `id`s of the functions that `timeout` does not apply to, and warn of them."""
        parameters = frozenset() if policy is None else frozenset(map(id, policy.parameters()))
        untimed = set()
        for name, fn in zip(self.names, self.reward_funcs, strict=True):
            members = [member for member in members_of(fn) if shares_base(member) or reads_any(member, parameters)]
            untimed |= {id(member) for member in members}
            if members:
                inside = "" if members[0] is fn else f" (by its member '{reward_name(members[0])}')"
                warnings.warn(
                    f"`reward_timeout` does not apply to {self.kind.lower()} '{name}', which runs the weights that the "
                    f"policy is trained on{inside}: a late call could not be stopped and would disturb the policy.",
                    stacklevel=3,
                )
        return frozenset(untimed)

    def _call_all(self, batch: Batch, allowed_failures: float, on_progress: Callable[[int], None]) -> list[CallResult]:
        return run_rewards(
            self.reward_funcs,
            batch,
            retries=self.retries,
            backoff=self.backoff,
            timeout=self.timeout,
            allowed_failures=allowed_failures,
            on_progress=on_progress,
            untimed=self._untimed,
        )

    def _scores(self, results: list[CallResult], batch: Batch, *, warns: bool) -> Scores:
        count = len(batch)
        per_function = torch.full((count, len(self.names)), math.nan)
        valid = torch.ones(count, dtype=torch.bool)
        log = CallLog()
        for column, result in enumerate(results):
            rewards = [math.nan if reward is None else reward for reward in sums(result.rewards)]
            per_function[:, column] = torch.tensor(rewards, dtype=torch.float32)
            valid[list(result.failures)] = False
            for name, values in result.log.metrics.items():
                log.metrics.setdefault(name, []).extend(values)
            log.extra.update(result.log.extra)
        not_applicable = per_function.isnan().all(dim=1) & valid
        if warns and not_applicable.any() and not self._warned_not_applicable:
            self._warned_not_applicable = True
            index = int(not_applicable.nonzero()[0])
            warnings.warn(
                f"All {self.kind.lower()}s returned None for sample {index} ({shown(batch, index)}), which is "
                f"skipped: make sure that one applies to every sample. There is no warning for later samples.",
                stacklevel=3,
            )
        valid &= ~not_applicable
        total = self._clipped((per_function * self.constraints.maximized).nansum(dim=1)).where(valid, 0.0)
        learned = self._clipped(self.constraints.learned(per_function)).where(valid, 0.0) if self.constraints else None
        logged = {name: combined(name, values) for name, values in log.metrics.items()}
        metrics, weights = ({name: pair[i] for name, pair in logged.items()} for i in range(2))
        by_token = [any(isinstance(reward, list) for reward in result.rewards) for result in results]
        names = tuple(name for name, found in zip(self.names, by_token, strict=False) if found)
        tokens = self._on_tokens(results, batch).where(valid.unsqueeze(1), 0.0) if names else None
        return Scores(total, per_function, valid, metrics, log.extra, weights, learned, tokens, names)

    def _clipped(self, total: Tensor) -> Tensor:
        return total if self.clip_range is None else total.clamp(*self.clip_range)

    def _on_tokens(self, results: list[CallResult], batch: Batch) -> Tensor:
        """Return what the policy learns from, (N, C), on the tokens that earn it."""
        rewards, lengths = [result.rewards for result in results], [len(ids) for ids in batch.completion_ids or []]
        terms = self.constraints
        return token_tensor(rewards, lengths, weights=terms.weights, bounds=terms.bounds, clip_range=self.clip_range)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the stateful functions, by name; JSON-able."""
        functions = zip(self.names, self.reward_funcs, strict=True)
        return {name: copy.deepcopy(fn.state_dict()) for name, fn in functions if is_stateful(fn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            ValueError: the state belongs to other functions.
        """
        functions = zip(self.names, self.reward_funcs, strict=True)
        stateful = {name: fn for name, fn in functions if is_stateful(fn)}
        if stateful.keys() != state.keys():
            raise ValueError(
                f"The saved state is of the reward functions {sorted(state)}, but those that keep state here are "
                f"{sorted(stateful)}: resume with the same reward functions."
            )
        for name, fn in stateful.items():
            fn.load_state_dict(copy.deepcopy(state[name]))


def _read_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise ValueError(f"Got {len(weights)} reward weights for {count} reward functions: give one each.")
    return check_weights("reward_weights", weights)


def _check_options(
    retries: int,
    backoff: float,
    timeout: float | None,
    max_reward_failures: float,
    clip_range: tuple[float, float] | None,
) -> None:
    if retries < 0 or not 0 <= max_reward_failures <= 1 or (timeout is not None and not timeout > 0):
        raise ValueError(
            f"Got retries={retries}, timeout={timeout}, max_reward_failures={max_reward_failures}: they must "
            f"be >= 0, positive or None, and within [0, 1]."
        )
    if not 0 <= backoff < math.inf:
        raise ValueError(f"Got backoff={backoff}: give the seconds before the first retry, 0 or more.")
    if clip_range is not None and (len(clip_range) != 2 or not clip_range[0] < clip_range[1]):
        raise ValueError(f"clip_range is {clip_range}: give (low, high) with low < high.")
