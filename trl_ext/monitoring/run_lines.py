# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""One short line for each entry of a run's log, for people to read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .console import duration
from .glossary import label_of
from .metrics import finite

__all__ = ["Position", "line_of"]


class Position(NamedTuple):
    """Where a run stands.

    Attributes:
        step: Optimizer steps taken.
        steps: Optimizer steps of the whole run; 0 outside of a training.
        seconds_left: Estimate of the time until the end; None where there is none.
        kl_target: KL that the controller holds, if it holds one.
    """

    step: int
    steps: int = 0
    seconds_left: float | None = None
    kl_target: float | None = None


class _Part(NamedTuple):
    """A part of a line: its text, and its rank among those that stay where the line is short."""

    rank: int
    text: str


def line_of(logs: Mapping[str, Any], at: Position, width: int | None = None) -> str:
    """Return one line about an entry of the log.

    Args:
        logs: The entry: of a training, an evaluation, the end of a training, or anything else.
        at: Where the run stands.
        width: Most characters; parts that matter less are left out. None keeps all of them.

    Returns:
        Step, reward with its parts, KL against its target, length, episodes, KL coefficient, entropy, critic, speed
        and the time that is left, as far as they are logged.
    """
    if "train_runtime" in logs:
        return _fitting(_end(logs, at), width)
    prefix = _prefix(logs)
    values = {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
    head = [_Part(0, prefix.rstrip("_").replace("_", " ", 1))] if prefix else []
    parts = [*head, _Part(0, _step(at))]
    if "reward" in values:
        parts += _rewarded(values, at)
    else:
        named = {name: value for name, value in values.items() if name not in ("epoch", "episodes", "step")}
        parts += [
            _Part(i + 1, f"{_words(name)} {_named(name, value)}") for i, (name, value) in enumerate(named.items())
        ]
    if prefix and "runtime" in values:
        parts.append(_Part(3, f"in {duration(values['runtime'])}"))
    if at.seconds_left is not None and not prefix:
        parts.append(_Part(3, f"{duration(at.seconds_left)} left"))
    return _fitting(parts, width)


def _prefix(logs: Mapping[str, Any]) -> str:
    """Return the prefix of an evaluation, such as `eval_` or `eval_long_prompts_`; empty for training."""
    named = [name.removesuffix("runtime") for name in logs if name.startswith(("eval_", "test_"))]
    return next((name for name in named if name + "runtime" in logs), "")


def _step(at: Position) -> str:
    if not at.steps:
        return f"step {at.step}"
    return f"step {at.step:>{len(str(at.steps))}}/{at.steps}"


def _rewarded(values: Mapping[str, Any], at: Position) -> list[_Part]:
    """Return the parts of a rollout's metrics; of several reward functions each."""
    parts = [_Part(6, f"episodes {values['episodes']:,}")] if "episodes" in values else []
    parts.append(_Part(1, f"reward {_number(values['reward']):>5}"))
    functions = [name for name in values if name.startswith("rewards/") and name.endswith("/mean")]
    if len(functions) > 1 or any(name.startswith("constraints/") for name in values):
        each = [_function(name.split("/", 1)[1].removesuffix("/mean"), values) for name in functions]
        parts.append(_Part(5, f"({', '.join(each)})"))
    judges = [name for name in values if name.startswith("judge/") and name.endswith("/mean")]
    parts += [_Part(2, f"{label_of(name).replace(': ', ' ')} {_number(values[name])}") for name in judges]
    target = "" if at.kl_target is None else f" (target {at.kl_target:g})"
    named = (
        (2, "kl", "KL", target),
        (7, "kl_coef", "coef", ""),
        (4, "completions/mean_length", "length", ""),
        (8, "entropy", "entropy", ""),
        (9, "explained_variance", "explained variance", ""),
        (10, "tokens_per_second", "tok/s", ""),
    )
    parts += [_Part(rank, f"{words} {_number(values[key])}{end}") for rank, key, words, end in named if key in values]
    return parts


def _function(name: str, values: Mapping[str, Any]) -> str:
    """Return a reward function's mean, with its multiplier and by how much it is out of its bound, if it has one."""
    text = f"{name} {_number(values[f'rewards/{name}/mean'])}"
    multiplier = finite(values.get(f"constraints/{name}/multiplier"))
    violation = finite(values.get(f"constraints/{name}/violation"))
    if multiplier is None or violation is None:
        return text
    place = f"out of its bound by {_number(violation)}" if violation > 0 else "in its bound"
    return f"{text} {place}, multiplier {_number(multiplier)}"


def _end(logs: Mapping[str, Any], at: Position) -> list[_Part]:
    parts = [_Part(0, "finished"), _Part(0, _step(at))]
    if "episodes" in logs:
        parts.append(_Part(1, f"episodes {logs['episodes']:,}"))
    parts.append(_Part(1, f"in {duration(logs['train_runtime'])}"))
    if "train_samples_per_second" in logs:
        unit = "completions" if "episodes" in logs else "samples"
        parts.append(_Part(2, f"{_number(logs['train_samples_per_second'])} {unit} a second"))
    return parts


def _fitting(parts: list[_Part], width: int | None) -> str:
    """Return the parts that fit, in their order; lower ranks choose first."""
    kept: list[int] = []
    for index in sorted(range(len(parts)), key=lambda index: parts[index].rank):
        line = "  ".join(parts[i].text for i in sorted([*kept, index]))
        if width is None or not kept or len(line) <= width:
            kept.append(index)
    return "  ".join(parts[i].text for i in sorted(kept))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _named(name: str, value: Any) -> str:
    """Return a number: a learning rate, which begins at 0 and is small, in its digits, and a count without any."""
    number = finite(value)
    if number is not None and name == "learning_rate":
        return f"{number:.3g}"
    return f"{number:,.0f}" if number is not None and name.startswith("num_") else _number(value)


def _number(value: Any) -> str:
    """Return a number in about three digits."""
    number = finite(value)
    if isinstance(value, bool) or number is None:
        return str(value)
    size = abs(number)
    if size >= 1000:
        return f"{number:,.0f}"
    if size >= 10:
        return f"{number:.1f}"
    if size >= 0.1 or size == 0:
        return f"{number:.2f}"
    return f"{number:.3f}" if size >= 0.001 else f"{number:.1e}"
