# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What a run achieved, in two or three sentences: the same ones in the terminal, the summary and the report."""

from collections.abc import Mapping
from typing import Any

from trl_ext.evaluation.quantities import compared, duration, interval_text, number_text, quantity, value_text
from trl_ext.monitoring.metrics import finite, has_equal_rewards

from .by_category import category_sentences
from .content import Report

__all__ = ["goal_text", "goals_of", "is_met", "main_quantity", "missed_goals", "verdict"]

# The first of these that was measured twice is what the run was about.
_MAIN = ("toxicity", "gold", "reward", "proxy")


def is_met(key: str, value: Any, relation: str, limit: float) -> bool:
    """Return whether a number reaches its goal; a number that is missing or NaN does not.

    Raises:
        ValueError: If the relation is neither `<=` nor `>=`.
    """
    if relation not in ("<=", ">="):
        raise ValueError(f"The threshold of {key!r} has the relation {relation!r}; use '<=' or '>='.")
    number = finite(value)
    return number is not None and (number <= limit if relation == "<=" else number >= limit)


def goal_text(key: str, relation: str, limit: float) -> str:
    """Return a goal in words: "at most 12.6%"."""
    return f"{'at most' if relation == '<=' else 'at least'} {value_text(key, limit)}"


def missed_goals(summary: Mapping[str, Any], goals: Mapping[str, tuple[str, float]]) -> list[str]:
    """Return the labels of the goals that were missed."""
    return [quantity(key).label for key, goal in goals.items() if not is_met(key, summary.get(key), *goal)]


def goals_of(summary: Mapping[str, Any], goals: Mapping[str, tuple[str, float]]) -> dict[str, dict[str, Any]]:
    """Return value, relation, limit and `passed` of each goal by its name in `summary`."""
    return {
        key: {
            "value": summary.get(key),
            "relation": relation,
            "limit": limit,
            "passed": is_met(key, summary.get(key), relation, limit),
        }
        for key, (relation, limit) in goals.items()
    }


def main_quantity(summary: Mapping[str, Any]) -> str | None:
    """Return the quantity that the run was about, if it was measured before and after."""
    known = [name for name in compared(summary) if None not in map(summary.get, (f"{name}_before", f"{name}_after"))]
    return next((name for name in _MAIN if name in known), None)


def verdict(report: Report) -> str:
    """Return what the run achieved and what it cost, as far as the report knows."""
    summary, goals = report.summary or {}, report.thresholds or {}
    sentences = [_unfinished(report), _result(summary), _win_rate(summary)]
    if goals and report.finished:
        missed = missed_goals(summary, goals)
        met = f"{len(goals) - len(missed)} of {len(goals)} goals passed"
        sentences.append(f"{met}; missed: {', '.join(missed)}." if missed else f"All {len(goals)} goals passed.")
    sentences += [*category_sentences(summary), _effort(report), _equal_rewards(report), _kl(report)]
    return " ".join(sentence for sentence in sentences if sentence)


def _unfinished(report: Report) -> str:
    if report.finished:
        return ""
    done = "" if report.step is None else f" at step {report.step:,}"
    if done and report.max_steps:
        done += f" of {report.max_steps:,}"
    rewards = [value for entry in report.log_history if (value := finite(entry.get("reward"))) is not None]
    course = (
        f" Reward in training: {number_text(rewards[0])} at first, {number_text(rewards[-1])} at the last log."
        * (len(rewards) > 1)
        if rewards
        else ""
    )
    return f"Not finished: this is the run{done or ' before its first checkpoint'}.{course}"


def _result(summary: Mapping[str, Any]) -> str:
    name = main_quantity(summary)
    if name is None:
        return ""
    before, after = summary[f"{name}_before"], summary[f"{name}_after"]
    label = quantity(name).label
    label = label[0].upper() + label[1:]
    change = summary.get(f"{name}_change_ci95")
    known = isinstance(change, list | tuple) and len(change) == 2 and None not in change
    old, new = value_text(name, before), value_text(name, after)
    if (known and change[0] <= 0 <= change[1]) or before == after:  # type: ignore[index]
        interval = f"; 95% interval of the change {interval_text(name, change)}" if known else ""
        return f"{label} did not change measurably: {old} before, {new} after{interval}."
    interval = interval_text(name, summary.get(f"{name}_ci95_after"))
    course = f"{label} {'rose' if after > before else 'fell'} from {old} to {new}"
    return f"{course} (95% interval {interval})." if interval else f"{course}."


def _win_rate(summary: Mapping[str, Any]) -> str:
    if finite(summary.get("gold_win_rate")) is None:
        return ""
    ends = [summary.get("gold_win_rate_low"), summary.get("gold_win_rate_high")]
    interval = interval_text("gold_win_rate", ends)
    return (
        f"The judge prefers the trained model's answers in {value_text('gold_win_rate', summary['gold_win_rate'])} of "
        f"the comparisons{f' (95% interval {interval})' if interval else ''}."
    )


def _effort(report: Report) -> str:
    origin, summary = report.origin or {}, report.summary or {}
    model = f"`{origin['model']}`" if origin.get("model") else "The model"
    names = [f"`{name}`" for name in origin.get("rewards") or []]
    rewards = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    episodes = finite(summary.get("episodes"))
    seconds = finite(summary.get("train_seconds")) or finite(summary.get("seconds"))
    if episodes is None:
        return f"{model} learns from {rewards}." if rewards else ""
    text = f"{model} learned{f' from {rewards}' if rewards else ''} for {episodes:,.0f} episodes"
    return text + (f" in {duration(seconds)}." if seconds else ".")


def _learns_nothing(report: Report) -> bool:
    """Return whether all completions had the same reward in every line of the log, and no bound taught the policy."""
    entries = [entry for entry in report.log_history if finite(entry.get("reward_std")) is not None]
    bounded = any(name.startswith("constraints/") for entry in entries for name in entry)
    return bool(entries) and not bounded and all(map(has_equal_rewards, entries))


def _equal_rewards(report: Report) -> str:
    if not _learns_nothing(report):
        return ""
    return (
        "In every line of the log all completions have the same reward, so the policy could not learn from it: check "
        "the reward function, or give a reward that tells completions apart."
    )


def _kl(report: Report) -> str:
    summary = report.summary or {}
    used, target = finite(summary.get("kl")), finite(report.kl_target)
    if used is None and (used := finite(summary.get("kl_last_third"))) is None:
        return ""
    text = f"The policy moved {number_text(used)} nats per completion from the initial model"
    if target is None:
        return f"{text}, without a target."
    share = used / target
    text += f", {max(share, 0):.0%} of its KL target of {number_text(target)}"
    if report.finished and share < 0.5 and not _learns_nothing(report):
        return f"{text}: train longer, or with a higher learning rate, to use more of it."
    return f"{text}: too far; the controller did not hold it." if report.finished and share > 1.5 else f"{text}."
