# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Trials of a reward function before a run: `check_reward` looks at all sides of it, `try_reward` calls it once."""

import copy
import math
import pickle
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.messages.printable import error_text, line_of
from trl_ext.text.rows import Text

from .base import (
    OWN_COLUMNS,
    REWARD,
    SILENT,
    Batch,
    ContractViolation,
    Reward,
    check_state,
    completion_text,
    is_stateful,
    iter_parts,
    reward_name,
    said_of,
)
from .calling import attempt, call_reward
from .tokens import sums

PROMPTS = ["The weather today is", "I think that you", "Wie geht", "今天"]
COMPLETIONS = [" fine, and it will stay fine.", " are an idiot.", " es dir? Gut, gut, gut, gut.", ""]


@dataclass(frozen=True)
class RewardCheck:
    """Report of `check_reward`.

    Attributes:
        name: the function's name in logs.
        formats: which of "plain" and "conversational" it accepts.
        values: its rewards for the samples, numbers or lists of one a token, in the first of these formats.
        seconds: how long that call took.
        warnings: doubts about the function; each was also given by `warnings.warn`.
        failures: its exception for each format that it does not accept.
    """

    name: str
    formats: tuple[str, ...]
    values: list[Reward]
    seconds: float
    warnings: tuple[str, ...]
    failures: Mapping[str, BaseException] = field(default_factory=dict)


def check_reward(
    fn: Callable,
    prompts: Sequence[Text] | None = None,
    completions: Sequence[Text] | None = None,
    *,
    completion_ids: list[list[int]] | None = None,
    **columns: list,
) -> RewardCheck:
    """Try a reward function on a few samples, one of them an empty completion, before a run.

    The function is called on the whole batch (as plain text and as conversations, if no samples are given), on the
    batch reversed, and on each sample alone. Its state is restored afterwards.

    Args:
        fn: the reward function.
        prompts: N prompts as the dataset has them; four short texts by default.
        completions: N completions in the format of the prompts.
        completion_ids: N lists of token ids; by default those of the function's `tokenizer`, if it has one, or the
            bytes of the completions. Token rewards must have their lengths.
        **columns: the columns that `fn` needs, N values each.

    Returns:
        A small report.

    Raises:
        ValueError, TypeError: `fn` breaks its contract (token rewards in a number other than that of the tokens, for
            instance), fails on every format, or returns the rewards in another order than the completions.
    """
    if (prompts is None) != (completions is None):
        raise ValueError("check_reward got only one of `prompts` and `completions`: give both or neither.")
    name = reward_name(fn)
    check_state(fn)
    candidates = _candidates(fn, prompts, completions, completion_ids, columns)
    values: dict[str, list[Reward]] = {}
    errors: dict[str, BaseException] = {}
    seconds = 0.0
    for form, batch in candidates.items():
        start = time.perf_counter()
        rewards, error = _try(fn, batch)
        if error is not None:
            errors[form] = error
            continue
        values[form] = rewards
        if len(values) == 1:
            seconds = time.perf_counter() - start
    if not values:
        texts = {form: f"{line_of(error)}{error_text(error)}" for form, error in errors.items()}
        same = len(set(texts.values())) == 1
        tried = texts.popitem()[1] if same else "; ".join(f"{form}: {text}" for form, text in texts.items())
        raise ValueError(f"Reward function '{name}' failed on a sample ({tried}).") from errors.popitem()[1]
    form = next(iter(values))
    found = _doubts(fn, name, candidates[form], values[form])
    for message in found:
        warnings.warn(message, stacklevel=2)
    return RewardCheck(name, tuple(values), values[form], seconds, tuple(found), errors)


_MISTAKES = (NameError, AttributeError, TypeError, ImportError, SyntaxError)


def try_reward(fn: Callable, prompts: Sequence[Text], columns: Mapping[str, list], kind: str = REWARD) -> None:
    """Call a reward function once on prompts of a data set with made-up completions, before a policy is loaded.

    A function with a model of its own is not called.

    Args:
        fn: the reward function.
        prompts: N prompts.
        columns: the other columns of the data set, N values each.
        kind: what messages call it.

    Raises:
        ValueError: `fn` breaks its contract, asks for a column that is not there, or has a mistake in its code.
    """
    if any(hasattr(part, "scorer") for part in iter_parts(fn)):
        return
    texts = [f" answer {i}" for i in range(len(prompts))]
    answers: list[Any] = [[{"role": "assistant", "content": text.strip()}] for text in texts]
    completions = texts if prompts and isinstance(prompts[0], str) else answers
    columns = {key: values for key, values in columns.items() if key not in OWN_COLUMNS}
    ids = _ids(fn, texts)
    try:
        error = _try(fn, Batch(prompts, completions, ids, columns, {"trainer_state": None, **SILENT}))[1]
    except ContractViolation as violation:
        with said_of(kind):
            raise ValueError(str(violation)) from violation
    if isinstance(error, _MISTAKES):
        name = reward_name(fn)
        raise ValueError(f"{kind} '{name}' fails on a trial: {line_of(error)}{error_text(error)}.") from error
    if error is not None:
        warnings.warn(
            f"{kind} '{reward_name(fn)}' fails on made-up completions ({line_of(error)}{error_text(error)}): "
            "samples on which it fails in the run are skipped.",
            stacklevel=2,
        )


def _ids(fn: Callable, texts: list[str]) -> list[list[int]]:
    """Return the texts' tokens by the policy's tokenizer, if the function or one of its members has it, or bytes."""
    found = (getattr(part, "tokenizer", None) for part in iter_parts(fn))
    tokenizer = next((one for one in found if isinstance(one, PreTrainedTokenizerBase)), None)
    if tokenizer is None:
        return [list(text.encode()) for text in texts]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _candidates(
    fn: Callable,
    prompts: Sequence[Text] | None,
    completions: Sequence[Text] | None,
    completion_ids: list[list[int]] | None,
    columns: dict[str, list],
) -> dict[str, Batch]:
    samples: dict[str, tuple[Sequence[Text], Sequence[Text]]]
    if prompts is not None and completions is not None:
        conversational = bool(completions) and not isinstance(completions[0], str)
        samples = {"conversational" if conversational else "plain": (prompts, completions)}
    else:
        chats: list[Text] = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        answers: list[Text] = [[{"role": "assistant", "content": completion}] for completion in COMPLETIONS]
        samples = {"plain": ([*PROMPTS], [*COMPLETIONS]), "conversational": (chats, answers)}
    services = {"trainer_state": None, **SILENT}
    batches = {}
    for form, (some_prompts, some_completions) in samples.items():
        ids = completion_ids or _ids(fn, [completion_text(completion) for completion in some_completions])
        lengths = {key: len(values) for key, values in columns.items()}
        lengths.update(prompts=len(some_prompts), completions=len(some_completions), completion_ids=len(ids))
        if not some_prompts or len(set(lengths.values())) != 1:
            raise ValueError(f"check_reward needs at least one sample and lists of one length, got {lengths}.")
        batches[form] = Batch(some_prompts, some_completions, ids, columns, services)
    return batches


def _try(fn: Any, batch: Batch) -> tuple[list[Reward], BaseException | None]:
    """Return the rewards, or the exception that the function raised or returned; restore its state."""
    state = copy.deepcopy(fn.state_dict()) if is_stateful(fn) else None
    try:
        outcomes, error = attempt(lambda: call_reward(fn, batch))
    finally:
        if state is not None:
            fn.load_state_dict(state)
    for outcome in outcomes or ():
        error = outcome if isinstance(outcome, BaseException) else error
    return outcomes or [], error  # type: ignore[return-value]


def _call(fn: Any, batch: Batch) -> list[Reward]:
    """Return the rewards of samples that the function has scored before, in another order or composition."""
    rewards, error = _try(fn, batch)
    if error is not None:
        raise ValueError(
            f"Reward function '{reward_name(fn)}' failed on samples that it had scored before ({error_text(error)}): "
            f"it must score them in any order, and each alone."
        ) from error
    return rewards


def _same(first: list[Reward], second: list[Reward]) -> bool:
    return all(_close(a, b) for a, b in zip(first, second, strict=True))


def _close(a: Reward, b: Reward) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_close, a, b))
    if a is None or b is None or isinstance(a, list) or isinstance(b, list):
        return a is b
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4)


def _shown(values: list[Reward]) -> str:
    """Return rewards for a message; of token rewards their sums."""
    by_token = any(isinstance(value, list) for value in values)
    return f"token rewards with the sums {sums(values)}" if by_token else str(values)


def _doubts(fn: Callable, name: str, batch: Batch, values: list[Reward]) -> list[str]:
    found = []
    try:
        pickle.dumps(fn)
    except Exception as error:
        found.append(
            f"Reward function '{name}' cannot be pickled ({error_text(error)}), as worker processes need: make it a "
            f"module-level function or a class with `__call__`."
        )
    if not _same(values, _call(fn, batch)):
        found.append(
            f"Reward function '{name}' gives the same batch other rewards the second time: make it deterministic if "
            f"it can be."
        )
        return found
    order = list(range(len(batch)))[::-1]
    if not _same(values[::-1], _call(fn, batch.select(order))):
        raise ValueError(
            f"Reward function '{name}' gave {_shown(values)} for a batch but not the same in reverse for the batch "
            f"reversed: return one reward per completion, in the order of the completions."
        )
    alone = [_call(fn, batch.select([i]))[0] for i in range(len(batch))]
    if not _same(values, alone):
        found.append(
            f"Reward function '{name}' gives {_shown(alone)} for the samples one by one and {_shown(values)} for the "
            f"batch: unless it compares samples on purpose, score each one on its own."
        )
    totals = [value for value in values if value is not None]
    # Of token rewards the places may differ.
    if len(totals) > 1 and all(isinstance(value, float | int) and value == totals[0] for value in totals):
        found.append(
            f"Reward function '{name}' gives all samples the same reward; PPO learns from differences, so try other "
            f"samples."
        )
    if all(value is None for value in values):
        found.append(f"Reward function '{name}' returned None for every sample: give samples that it applies to.")
    return found
