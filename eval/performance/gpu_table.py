# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What the jobs of `eval.performance.on_gpu` add up to: memory against plan and limit, speeds, share of the peak."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from trl_ext.planner.plan import GIB

LIMITS = {"llama-3-8b": 12, "qwen2.5-14b": 16, "phi-4": 16}  # GiB, for prompts and completions of 512 tokens
PLANNED_WITHIN = 15  # percent
GOAL = 0.5  # of the peak rate, in learning


def summary(folder: Path) -> dict[str, Any]:
    """Return `memory`, `phases` and `engines`, a list of rows each, from the files that are there."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*_*.json"))]
    path = folder / "peak.json"
    peak = json.loads(path.read_text(encoding="utf-8"))["operations_per_second"] if path.exists() else None
    rows: dict[str, Any] = {"operations_per_second": peak, "memory": [], "phases": [], "engines": []}
    for result in results:
        make = {"memory": _memory, "phases": lambda r: _phases(r, peak), "engines": _engine}[result["part"]]
        rows[result["part"]].append(_run(result) | make(result))
    return rows


def _run(result: dict[str, Any]) -> dict[str, Any]:
    setup = result["arguments"]
    names = ("quantization", "rank", "critic", "prompt", "completion", "micro_batch")
    return {"shape": result["shape"], "device": result["device"]["name"]} | {name: setup[name] for name in names}


def _memory(result: dict[str, Any]) -> dict[str, Any]:
    phases, setup = result["phases"], result["arguments"]
    measured = {name: max(figures[name] for figures in phases.values()) for name in ("allocated", "process")}
    planned = max(figures["planned"] for figures in phases.values())
    difference = 100 * (planned / max(1, measured["allocated"]) - 1)
    limit = LIMITS.get(result["shape"]) if setup["completion"] == 512 else None
    return measured | {
        "planned": planned,
        "difference_percent": difference,
        "planner_is_right": abs(difference) <= PLANNED_WITHIN,
        "limit_gib": limit,
        "within_limit": None if limit is None else measured["allocated"] < limit * GIB,
    }


def _phases(result: dict[str, Any], peak: float | None) -> dict[str, Any]:
    speeds = {phase: figures["tokens_per_second"] for phase, figures in result["phases"].items()}
    seconds = result["phases"]["learn"]["seconds"]
    shares = {} if peak is None else {
        "share_of_peak": result["operations"] / seconds / peak,
        "share_with_recomputation": result["operations_with_recomputation"] / seconds / peak,
    }  # fmt: skip
    return {"tokens_per_second": speeds, **shares}


def _engine(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("engine", "seconds", "tokens_per_second", "metrics")}


def summary_tables(made: dict[str, Any]) -> list[Table]:
    """Return the tables of a summary, those without rows left out."""
    tables = []
    for part, title, columns, cells in (
        ("memory", "Memory", ("measured GiB", "planned GiB", "difference", "limit GiB"), _memory_cells),
        ("phases", "Tokens per second", ("generate", "evaluate", "learn", f"of the peak (goal {GOAL:.0%})"), _speeds),
        ("engines", "Sampling", ("engine", "tokens/s"), lambda r: (r["engine"], f"{r['tokens_per_second']:.0f}")),
    ):
        table = Table(title=title)
        for column in ("model", "weights", "critic", "tokens", "batch", *columns):
            table.add_column(column)
        for row in made[part]:
            trained = f"{row['quantization']}, {'rank ' + str(row['rank']) if row['rank'] else 'full'}"
            lengths = f"{row['prompt']}+{row['completion']}"
            table.add_row(row["shape"], trained, row["critic"], lengths, str(row["micro_batch"]), *cells(row))
        tables += [table] if made[part] else []
    return tables


def _memory_cells(row: dict[str, Any]) -> tuple[str, ...]:
    measured, planned = (f"{row[name] / GIB:.2f}" for name in ("allocated", "planned"))
    limit = "" if row["limit_gib"] is None else f"{row['limit_gib']}, {'met' if row['within_limit'] else 'MISSED'}"
    return measured, planned, f"{row['difference_percent']:+.1f}%", limit


def _speeds(row: dict[str, Any]) -> tuple[str, ...]:
    speeds = [f"{row['tokens_per_second'][phase]:.0f}" for phase in ("generate", "evaluate", "learn")]
    share = f"{row['share_of_peak']:.0%} ({row['share_with_recomputation']:.0%} with recomputation)"
    return *speeds, share if "share_of_peak" in row else ""
