# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Reward functions: their signature, the batch that they score, and the check of their result.

The signature is TRL's, so that functions written for `GRPOTrainer` and `RLOOTrainer` work here, and these work there:

    f(prompts, completions, completion_ids, **columns) -> list[float | list[float] | None]

- `prompts`, `completions`: N strings, or N conversations (lists of messages) if the dataset is conversational.
- `completion_ids`: N lists of token ids, as sampled (the end-of-sequence token included).
- Every call gets its own lists, dictionaries, arrays and tensors and may change them; images and other objects are
  shared.
- `**columns`: the dataset's other columns, N values each, and these services: `trainer_state`,
  `log_extra(column, values)` (a column of the sample table), `log_metric(name, value)` (a scalar in the logs) and
  `on_progress(n)` (n more samples are scored). A function without `**kwargs` gets only the arguments that it names.
- The result: one finite number per completion, higher is better; or a list of them, one for each of its
  `completion_ids`, where single tokens earn rewards (see `tokens`); `None` where the function does not apply; an
  exception in the place of a number where the function failed on that completion alone, which is then tried again.

Async functions run concurrently. Functions with parameters are picklable classes with a `__name__`. A function with
state between calls is [`Stateful`], and its state goes into checkpoints.
"""

import copy
import functools
import inspect
import json
import math
import numbers
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch

from trl_ext.messages.printable import brief, one_line
from trl_ext.text.rows import Message, Text, message_text

Reward = float | list[float] | None
"""The reward of a completion: a number, one number for each of its tokens, or None."""
Outcome = Reward | BaseException
"""A reward, None, or the exception with which the function failed."""
Texts = Sequence[Text]
Ids = list[list[int]] | None

# The services of a call whose logs and progress are not wanted.
SILENT = {
    "log_extra": lambda column, values: None,
    "log_metric": lambda name, value: None,
    "on_progress": lambda n: None,
}
SERVICES = ("trainer_state", *SILENT)
OWN_COLUMNS = ("prompt", "completion", "prompts", "completions", "completion_ids")  # never passed on as columns
_FLOAT32_MAX = torch.finfo(torch.float32).max


class RewardFunction(Protocol):
    """A callable that scores completions; see the module's docstring for the arguments and the result."""

    def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], completion_ids: list[list[int]], **columns: Any
    ) -> list[Reward] | Awaitable[list[Reward]]:
        """Return one reward, or a list of one a token, for each of the N completions; None where it does not apply."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A reward function with state between calls, JSON-able, which goes into checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able state for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        ...


def is_stateful(fn: Any) -> TypeGuard[Stateful]:
    """Return whether `fn` is [`Stateful`]; the `state_dict` that every `torch.nn.Module` has is that of its weights."""
    weights = isinstance(fn, torch.nn.Module) and type(fn).state_dict is torch.nn.Module.state_dict
    return isinstance(fn, Stateful) and not weights


def check_state(fn: Any, kind: str = "Reward function") -> None:
    """Refuse a stateful function whose state cannot go into a checkpoint.

    Raises:
        ValueError: the state is not JSON-able.
    """
    name = reward_name(fn)
    if is_stateful(fn):
        try:
            json.dumps(fn.state_dict())
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{kind} '{name}' has a `state_dict` that is no JSON ({one_line(error, 100)}), as "
                f"checkpoints need: return numbers, texts, lists and dictionaries of them."
            ) from error


@runtime_checkable
class Synchronized(Protocol):
    """A reward function with statistics over all processes.

    Attributes:
        synchronize_each_call: Whether each call ends with `synchronize`. `RewardRunner` turns it off and calls
            `synchronize` itself, once a batch: it repeats failed calls, and no process may repeat a collective alone.
    """

    synchronize_each_call: bool

    def synchronize(self) -> None:
        """Merge the statistics of all processes. A collective."""


_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})


def fresh(value: Any) -> Any:
    """Return a copy of `value` that can be changed without changing `value`.

    Lists, tuples, dictionaries, sets, arrays and tensors are copied at every depth. Images and other objects are
    shared: they can be large, and reward functions rarely change them.
    """
    if type(value) in _SCALARS:
        return value
    if isinstance(value, list):
        # most lists are long ones of numbers, such as token ids
        return list(value) if _SCALARS.issuperset(map(type, value)) else [fresh(entry) for entry in value]
    if isinstance(value, tuple):
        return type(value)(*map(fresh, value)) if hasattr(value, "_fields") else tuple(map(fresh, value))
    if isinstance(value, dict):
        new = copy.copy(value)
        for key, entry in value.items():
            new[key] = fresh(entry)
        return new
    if isinstance(value, np.ndarray | set | deque | bytearray):
        return value.copy()
    return value.clone() if isinstance(value, torch.Tensor) else value


class ContractViolation(Exception):
    """A breach of the contract of reward functions. Never retried: the same call would breach it again."""


REWARD, JUDGE = "Reward function", "Judge"


@contextmanager
def said_of(kind: str, hint: str = "") -> Iterator[None]:
    """Let what a function breaks in a block be said of another kind of function, such as a `JUDGE`, with a hint."""
    try:
        yield
    except Exception as error:
        text = error.args[0] if error.args else None
        if isinstance(text, str) and text.startswith(f"{REWARD} '"):
            error.args = (kind + text.removeprefix(REWARD) + hint,)
        raise


class RewardValueError(ContractViolation, ValueError):
    """Wrong number of rewards, NaN, infinity, or a model that cannot be used."""


class RewardTypeError(ContractViolation, TypeError):
    """Rewards that are not numbers, or a function that asks for a column that the dataset lacks."""


@dataclass(frozen=True)
class Batch:
    """N samples to score: the arguments of a reward function.

    Attributes:
        prompts: N strings or conversations.
        completions: N strings or conversations.
        completion_ids: N lists of token ids; `None` only outside a trainer, where there may be no tokenizer.
        columns: the dataset's other columns, N values each.
        services: values of `SERVICES`, passed on whatever N is.
        timeout: seconds that each further call of a member by `Combination.combine` may take; `None` means no limit.
    """

    prompts: Sequence[Text]
    completions: Sequence[Text]
    completion_ids: list[list[int]] | None
    columns: dict[str, list] = field(default_factory=dict)
    services: dict[str, Any] = field(default_factory=dict)
    timeout: float | None = None

    @classmethod
    def from_call(
        cls, prompts: Sequence[Text], completions: Sequence[Text], completion_ids: list[list[int]] | None, kwargs: dict
    ) -> "Batch":
        """Return the batch that the arguments of a reward function stand for."""
        columns = {key: value for key, value in kwargs.items() if key not in SERVICES}
        services = {key: value for key, value in kwargs.items() if key in SERVICES}
        return cls(prompts, completions, completion_ids, columns, services)

    def __len__(self) -> int:
        return len(self.completions)

    def select(self, indices: Sequence[int]) -> "Batch":
        """Return the samples at `indices`, in that order; repeats are allowed."""
        return replace(
            self,
            prompts=[self.prompts[i] for i in indices],
            completions=[self.completions[i] for i in indices],
            completion_ids=None if self.completion_ids is None else [self.completion_ids[i] for i in indices],
            columns={key: [values[i] for i in indices] for key, values in self.columns.items()},
        )

    def fresh(self) -> "Batch":
        """Return a copy of the samples that can be changed without changing this batch."""
        ids, columns = fresh(self.completion_ids), fresh(self.columns)
        return replace(
            self, prompts=fresh(self.prompts), completions=fresh(self.completions), completion_ids=ids, columns=columns
        )

    def arguments(self) -> dict[str, Any]:
        """Return all that a reward function may ask for, by keyword."""
        sample = {"prompts": self.prompts, "completions": self.completions, "completion_ids": self.completion_ids}
        return {**self.columns, **self.services, **sample}


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def reward_name(fn: Callable) -> str:
    """Return the name of a reward function in logs: its `__name__`, or the name of its class."""
    fn = _unwrapped(fn)
    return one_line(getattr(fn, "__name__", type(fn).__name__), 100)


def is_async(fn: Callable) -> bool:
    """Return whether calling `fn` (function, partial, or instance with an async `__call__`) gives a coroutine."""
    fn = _unwrapped(fn)
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def iter_parts(fn: Any) -> Iterator[Any]:
    """Yield `fn` and the reward functions that it combines (its `members`), at every depth."""
    yield fn
    for member in getattr(fn, "members", ()):
        yield from iter_parts(member)


def keeps_statistics(fn: Any) -> bool:
    """Return whether `fn`, or a function that it combines, has running statistics, so that its unit moves."""
    return any(isinstance(part, Synchronized) for part in iter_parts(fn))


def completion_text(completion: Text) -> str:
    """Return the policy's own text as one string; messages of tools and other roles are left out."""
    if isinstance(completion, str):
        return completion
    written = [message_text(message) for message in completion if message.get("role", "assistant") == "assistant"]
    return "\n".join(text for text in written if text)


def prompt_text(prompt: Text) -> str:
    """Return the prompt as one string, a line per message; tool results and messages without text are left out."""
    if isinstance(prompt, str):
        return prompt
    texts = [message_text(message) for message in prompt if message.get("role") != "tool"]
    return "\n".join(text for text in texts if text)


def continues_turn(prompt: Sequence[Message], completion: Sequence[Message]) -> bool:
    """Return whether the prompt ends in an assistant message that the completion continues (prefill)."""
    if not prompt or not completion:
        return False
    return prompt[-1].get("role") == "assistant" and completion[0].get("role", "assistant") == "assistant"


def conversation(prompt: Sequence[Message], completion: Sequence[Message]) -> list[Message]:
    """Return prompt and completion as one conversation.

    A policy continues a prompt that ends in an assistant message (prefill). That message and the completion's first
    one are one turn, and become one message.
    """
    if not continues_turn(prompt, completion):
        return [*prompt, *completion]
    begun, rest = prompt[-1], completion[0]
    parts = [part for message in (begun, rest) for part in _parts(message)]
    content = parts if any(part.get("type") != "text" for part in parts) else message_text({"content": parts})
    return [*prompt[:-1], {**begun, **rest, "content": content}, *completion[1:]]


def _parts(message: Message) -> list[Any]:
    content = message.get("content") or ""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def full_text(prompt: Text, completion: Text) -> str:
    """Return prompt and completion as one string; plain text and prefilled turns are joined without a separator."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    begun = not isinstance(prompt, str) and not isinstance(completion, str) and continues_turn(prompt, completion)
    texts = [text for text in (prompt_text(prompt), completion_text(completion)) if text]
    return ("" if begun else "\n").join(texts)


def accepted_arguments(fn: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the `arguments` that `fn` takes: all of them if it has `**kwargs`, otherwise those that it names.

    Raises:
        RewardTypeError: `fn` requires an argument that `arguments` lacks.
    """
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins and extension types have no signature
        return arguments
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {p.name for p in parameters if p.kind in by_keyword}
    required = [p.name for p in parameters if p.kind in by_keyword and p.default is inspect.Parameter.empty]
    missing = [name for name in required if name not in arguments]
    if missing:
        raise RewardTypeError(
            f"Reward function '{reward_name(fn)}' asks for {missing}, but there is only {sorted(arguments)}: add the "
            f"column to the dataset or give the parameter a default."
        )
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return arguments
    return {key: value for key, value in arguments.items() if key in named}


def read_rewards(name: str, result: Any, expected: int, ids: Ids = None) -> list[Outcome]:
    """Check the result of reward function `name`: `expected` floats, lists of floats, `None`s or exceptions.

    Booleans, NumPy numbers, 0-dimensional tensors, and 1-dimensional tensors and arrays are fine.

    Args:
        name: the function's name in logs.
        result: what it returned.
        expected: number of completions.
        ids: their token ids, which say how many rewards a list must have; None does not check.

    Raises:
        RewardValueError: not `expected` rewards, a list that has not one a token, or a number that is NaN or infinite
            in float32.
        RewardTypeError: not a list, or an element that is not a number.
    """
    if isinstance(result, torch.Tensor | np.ndarray):
        if result.ndim != 1:
            raise RewardTypeError(
                f"Reward function '{name}' returned an array of shape {tuple(result.shape)}: return one of shape "
                f"({expected},), one number per completion, or a list with a list of one number a token per completion."
            )
        result = result.tolist()
    if isinstance(result, str | bytes | Mapping | set | frozenset) or not isinstance(result, Iterable):
        raise RewardTypeError(
            f"Reward function '{name}' returned {brief(result)} ({type(result).__name__}): return a list with one "
            f"number or None per completion."
        )
    # an iterator may have no end
    values = list(islice(result, expected + 1)) if isinstance(result, Iterator) else list(result)
    if len(values) != expected:
        raise RewardValueError(
            f"Reward function '{name}' returned {len(values)} rewards for {expected} completions: return exactly one "
            f"per completion."
        )
    lengths = [None] * expected if ids is None else [len(row) for row in ids]
    return [_read_reward(name, value, i, length) for i, (value, length) in enumerate(zip(values, lengths, strict=True))]


def _read_reward(name: str, value: Any, index: int, length: int | None) -> Outcome:
    if value is None or isinstance(value, BaseException):
        return value
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return _read_number(name, value, f"sample {index}", "a number, a list of one number a token, or None")
    if length is not None and len(value) != length:
        raise RewardValueError(
            f"Reward function '{name}' returned {len(value)} token rewards for sample {index}, whose completion has "
            f"{length} tokens: return one number for each of its `completion_ids`, or one for the whole completion."
        )
    rewards = [_read_number(name, one, f"token {t} of sample {index}", "a number") for t, one in enumerate(value)]
    _read_number(name, math.fsum(rewards), f"the sum over the tokens of sample {index}", "smaller numbers")
    return rewards


def _read_number(name: str, value: Any, place: str, wanted: str) -> float:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise RewardTypeError(
            f"Reward function '{name}' returned {brief(value)} ({type(value).__name__}) for {place}: return {wanted}."
        )
    try:
        number = float(value)
    except OverflowError:  # an integer or a fraction beyond every float
        number = math.inf
    if not math.isfinite(number) or abs(number) > _FLOAT32_MAX:
        raise RewardValueError(
            f"Reward function '{name}' returned {number} for {place}, which is not a finite float32: return None for "
            f"a sample that it cannot score."
        )
    return number
