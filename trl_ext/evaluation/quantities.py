# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The numbers of a summary: the words, unit and format in which terminal, report and model card show each.

Names that end in `_before` and `_after` are one quantity, `<name>_ci95_before` and `<name>_ci95_after` its 95%
intervals, and `<name>_change_ci95` the interval of the difference. Names that end in `_ema` are the same quantity of
the average of the policy (`policy_ema_decay`).
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

__all__ = [
    "AVERAGE_NAME",
    "QUANTITIES",
    "Quantity",
    "compared",
    "duration",
    "has_average",
    "interval_text",
    "number_text",
    "quantity",
    "times_of",
    "value_text",
]

AVERAGE_NAME = "policy average"


class Quantity(NamedTuple):
    """Label of a number in a summary.

    Attributes:
        label: In lower case, for tables and the middle of a sentence.
        unit: Behind the number; empty for a pure number.
        is_fraction: Whether it is shown in percent.
        better: Which values are better; None where neither is.
    """

    label: str
    unit: str = ""
    is_fraction: bool = False
    better: Literal["lower", "higher"] | None = None


QUANTITIES = {
    "toxicity": Quantity("toxicity", "", True, "lower"),
    "reward": Quantity("reward", better="higher"),
    "perplexity": Quantity("perplexity", better="lower"),
    "distinct_2": Quantity("distinct-2", better="higher"),
    "mean_length": Quantity("mean length", "tokens"),
    "empty_fraction": Quantity("empty completions", "", True, "lower"),
    "terminated_fraction": Quantity("completions that ended by themselves", "", True),
    "kl": Quantity("KL to the initial model", "nats per completion"),
    "kl_at_optimum": Quantity("least KL for this reward", "nats per completion"),
    "kl_ema": Quantity("KL of the policy average", "nats per completion"),
    "kl_at_optimum_ema": Quantity("least KL for the reward of the policy average", "nats per completion"),
    "eta": Quantity("eta: place between initial and trained weights"),
    "num_choice_prompts": Quantity("prompts that eta was chosen on"),
    "kl_target": Quantity("KL target", "nats per completion"),
    "kl_last_third": Quantity("KL over the last third of training", "nats per completion"),
    "kl_coef": Quantity("KL coefficient at the end"),
    "episodes": Quantity("episodes"),
    "num_eval_prompts": Quantity("evaluation prompts"),
    "seconds": Quantity("time", "s"),
    "train_seconds": Quantity("time for training", "s"),
    "peak_memory_gib": Quantity("peak memory", "GiB"),
    "gold_win_rate": Quantity("gold win rate", "", True, "higher"),
    "gold_win_rate_low": Quantity("gold win rate, lower end of its interval", "", True, "higher"),
    "gold_win_rate_high": Quantity("gold win rate, upper end of its interval", "", True, "higher"),
    "gold_ties": Quantity("ties", "", True),
    "gold": Quantity("gold reward", better="higher"),
    "proxy": Quantity("proxy reward", better="higher"),
    "reward_model_accuracy": Quantity("accuracy of the reward model", "", True, "higher"),
}


def quantity(name: str) -> Quantity:
    """Return the words for a name in a summary, with or without `_before`, `_after` or `_ema`."""
    if name in QUANTITIES:
        return QUANTITIES[name]
    name = name.removesuffix("_before").removesuffix("_after").removesuffix("_ema")
    if name in QUANTITIES:
        return QUANTITIES[name]
    if name.startswith("rewards/"):
        return Quantity(f"reward {name.removeprefix('rewards/')}", better="higher")
    if name.startswith("judge/"):
        return Quantity(f"judge {name.removeprefix('judge/')}", better="higher")
    return Quantity(name.replace("_", " "))


def compared(summary: Mapping[str, Any]) -> list[str]:
    """Return the quantities of which a summary has a number before or after training, in its order.

    The only component of a reward that has the same numbers as the reward is left out.
    """
    keys = [key for key in summary if key.endswith(("_before", "_after"))]
    names = dict.fromkeys(key.removesuffix("_before").removesuffix("_after") for key in keys)
    names = {name: None for name in names if not name.endswith("_ci95")}
    components = [name for name in names if name.startswith("rewards/")]
    if len(components) == 1 and _numbers(summary, components[0]) == _numbers(summary, "reward"):
        del names[components[0]]
    return list(names)


def _numbers(summary: Mapping[str, Any], name: str) -> list[Any]:
    return [summary.get(f"{name}_{time}") for time in ("before", "after")]


def has_average(summary: Mapping[str, Any]) -> bool:
    """Return whether a summary has numbers of the average of the policy beside those of the last policy."""
    return summary.get("kl_ema") is not None


def times_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the times at which a summary measured, and their names: before, after and "ema" where there is one."""
    average = {"ema": AVERAGE_NAME} if has_average(summary) else {}
    return {"before": "before", "after": "after"} | average


def value_text(name: str, value: Any) -> str:
    """Return a number as it is shown, in percent where it is a fraction, without its unit."""
    percent = quantity(name).is_fraction and isinstance(value, Real) and not isinstance(value, bool)
    return f"{float(value):.1%}" if percent else number_text(value)


def number_text(value: Any) -> str:
    """Return a number with three significant digits, thousands with commas; "–" where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return f"{int(value):,}"
    return f"{float(value):,.0f}" if abs(float(value)) >= 1000 else f"{float(value):.3g}"


def interval_text(name: str, interval: Any) -> str:
    """Return the ends of an interval, "45.7% to 56.0%"; empty where there is none."""
    if not isinstance(interval, list | tuple) or len(interval) != 2 or None in interval:
        return ""
    return " to ".join(value_text(name, end) for end in interval)


def duration(seconds: float) -> str:
    """Return a time for people: "41 s", "2 min 41 s", "3 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
