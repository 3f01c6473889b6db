# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Runs of two trainers by turns, each in a process of its own, and the ratios of their speed and memory."""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .stopwatch import PHASES


def result_of(command: list[str], what: object, **environment: str) -> dict[str, Any]:
    """Call a command in a new process and return what it wrote.

    Args:
        command: It gets one more argument, the file of JSON that it has to write.
        what: Names the run in an error.
        environment: Variables that differ from those of this process.

    Raises:
        RuntimeError: when it fails, with the last of what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        variables = os.environ | environment
        done = subprocess.run([*command, str(path)], check=False, capture_output=True, text=True, env=variables)
        if done.returncode:
            raise RuntimeError(f"{what} failed:\n{done.stderr[-3000:]}")
        return json.loads(path.read_text(encoding="utf-8"))


def by_turns(
    trainers: tuple[str, str], rounds: int, batch: int, measured: Callable[[str, str, int], dict[str, Any]]
) -> dict[str, Any]:
    """Run two trainers, taking turns.

    Args:
        trainers: The other trainer and ours.
        rounds: Timed runs of each trainer; the run for memory comes after them.
        batch: Completions of an update.
        measured: Does a run, and returns what `versus_trl.execute` returns. It gets the trainer, "time" or "memory" and
            the number of the round.

    Returns:
        By trainer its median seconds by phase, samples per second, completion tokens of an update where they are
        counted, and peaks of memory; and `speed` and `memory`, ours over the other's. `speed_by_round` shows the spread
        of the ratio.
    """
    runs: dict[str, list[dict[str, Any]]] = {trainer: [] for trainer in trainers}
    for number in range(rounds):
        for trainer in trainers:
            runs[trainer].append(measured(trainer, "time", number))
    result: dict[str, Any] = {}
    for trainer in trainers:
        every = [update for run in runs[trainer] for update in run["updates"]]
        seconds = {phase: statistics.median(update[phase] for update in every) for phase in PHASES}
        speed = batch / statistics.median(sum(update.values()) for update in every)
        result[trainer] = {"seconds": seconds, "samples_per_second": speed}
        tokens = [count for run in runs[trainer] for count in run["tokens"] if count]
        if tokens:
            result[trainer]["completion_tokens"] = statistics.mean(tokens)
        result[trainer] |= measured(trainer, "memory", 0)
    whole = [[sum(sum(update.values()) for update in run["updates"]) for run in runs[trainer]] for trainer in trainers]
    theirs, ours = (result[trainer] for trainer in trainers)
    return result | {
        "speed": ours["samples_per_second"] / theirs["samples_per_second"],
        "speed_by_round": [their_time / our_time for their_time, our_time in zip(*whole, strict=True)],
        "memory": ours["process"] / theirs["process"],
    }
