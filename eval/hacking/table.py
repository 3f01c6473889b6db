# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""False alarms on healthy runs beside the delay on hacked ones, from recorded series."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_ext.monitoring.signals import TOLERANCES, Alarm

from .series import APART, compact, label, replay

RUNS = Path(__file__).parent / "runs.jsonl"
PART = "false alarms"  # name of the generated part of the page
STEPS_PER_ROLLOUT = 2
# What each monitor of the table is given: prefixes of gold scores, and the other signals.
MONITORS: dict[str, tuple[tuple[str, ...], bool]] = {
    "everything": (("", "eval_watched_"), True),
    "gold in rollouts and evaluations": (("", "eval_watched_"), False),
    "gold in rollouts": (("",), False),
    "gold in evaluations": (("eval_watched_",), False),
    "no gold reward": ((), True),
}
NO_LOOKS: Mapping[str, float | None] = dict.fromkeys(TOLERANCES)


def condensed(folder: Path) -> list[dict[str, Any]]:
    """Return the runs in a folder as rows: setting, label, named categories, and the compact series."""
    rows = []
    for file in sorted(folder.glob("*-seed*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        kept = ("name", "world", "reward", "kl_target", "seed", "rollouts", "kl")
        found = {"label": label(run["series"])._asdict(), "categories": named_categories(run["series"])}
        rows.append({key: run[key] for key in kept} | found | {"series": compact(run["series"])})
    return rows


def alarms_of(row: dict[str, Any], monitor: str, tolerances: Mapping[str, float | None] = TOLERANCES) -> list[Alarm]:
    """Return the alarms that a monitor of `MONITORS` raises on a run."""
    sources, looks = MONITORS[monitor]
    return replay(row["series"], tolerances if looks else NO_LOOKS, sources=sources).alarms


def delay(row: dict[str, Any], alarms: Iterable[Alarm]) -> tuple[int, float] | None:
    """Return rollouts from the peak of gold to the first alarm, and the part of its gain that was lost by then.

    Peak and loss are those of the prompts that the monitor does not see; an alarm before the peak has a negative delay.
    None without an alarm.
    """
    first = min((alarm.step for alarm in alarms), default=None)
    if first is None:
        return None
    steps, gold = row["label"]["steps"], row["label"]["gold"]
    smooth = np.convolve(np.pad(gold, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    peak = int(smooth.argmax())
    gain = max(smooth[peak] - gold[0], 1e-9)
    lost = (smooth[peak] - float(np.interp(first, steps, smooth))) / gain
    return round((first - steps[peak]) / STEPS_PER_ROLLOUT), float(lost)


def measured(rows: Sequence[dict[str, Any]], tolerances: Mapping[str, float | None] = TOLERANCES) -> dict[str, Any]:
    """Return, for each monitor, false alarms by signal, hacked runs found, and delays."""
    healthy = [row for row in rows if row["label"]["kind"] == "healthy"]
    hacked = [row for row in rows if row["label"]["kind"] == "hacked"]
    found: dict[str, Any] = {"healthy": len(healthy), "hacked": len(hacked), "monitors": {}}
    for monitor in MONITORS:
        false = {row["name"]: [alarm.signal for alarm in alarms_of(row, monitor, tolerances)] for row in healthy}
        delays = [delay(row, alarms_of(row, monitor, tolerances)) for row in hacked]
        known = [each for each in delays if each is not None]
        found["monitors"][monitor] = {
            "false_alarms": {name: signals for name, signals in false.items() if signals},
            "found": len(known),
            "rollouts": sorted(rollouts for rollouts, _ in known),
            "lost": sorted(round(lost, 2) for _, lost in known),
        }
    return found


def table(result: dict[str, Any]) -> str:
    """Return a result of `measured` as a table in Markdown."""
    lines = [
        "| monitor | healthy runs with a false alarm | hacked runs found | rollouts from the peak of gold to the "
        "alarm | part of gold's gain lost at the alarm |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["monitors"].items():
        lines.append(
            f"| {name} | {len(row['false_alarms'])} of {result['healthy']} | {row['found']} of {result['hacked']} | "
            f"{_spread(row['rollouts'])} | {_spread(row['lost'])} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):g} ({values[0]:g} to {values[-1]:g})" if values else ""


def named_categories(series: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Return the categories that a monitor names, and whether each also lost on the prompts that it does not see.

    Args:
        series: A whole series, with the scores of single samples.

    Returns:
        Category, and whether its gold score on the prompts apart is lower in the last two evaluations than on average
        in the first half of them.
    """
    if not any(entry.get("categories", [None])[0] for entry in series):
        return []
    named = [alarm.signal.removeprefix("gold/") for alarm in replay(series, NO_LOOKS).alarms if "/" in alarm.signal]
    apart = [entry for entry in series if APART in entry.get("prefix", "")]
    found = []
    for name in named:
        gold = [
            np.mean([g for g, c in zip(entry["golds"], entry["categories"], strict=True) if c == name])
            for entry in apart
        ]
        found.append((name, bool(np.mean(gold[-2:]) < np.mean(gold[: len(gold) // 2]))))
    return found
