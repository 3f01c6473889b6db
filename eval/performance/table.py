# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The table of models and the cards they fit on, in `docs/memory.md` and, short, in the README."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from eval.pages.markers import between, insert
from trl_ext.files import write_text
from trl_ext.planner.plan import GIB, Footprint

from .memory import RESULTS

PART = "what fits"
CARDS = (6, 8, 12, 16, 24, 32, 48, 80)
SETTINGS = ("Card", "Model", "Weights", "Critic", "Reward adapters", "Prompt + completion", "Micro-batch", "Sampled at")
COLUMNS = (*SETTINGS, "Generate", "Evaluate", "Learn", "Figures")
SHORT = ("Card", "Model", "Weights", "Prompt + completion", "Micro-batch", "Peak", "Figures")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return results of whole models on one base, from small to large; a measurement replaces its plan."""
    chosen: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        setup = results["arguments"]
        on_gpu = results["device"] is None or results["device"]["type"] == "cuda"
        if results["arrangement"] != "one-base" or setup["layers"] or setup["hidden"] or not on_gpu:
            continue
        key = json.dumps([results["shape"], setup], sort_keys=True)
        if key not in chosen or chosen[key]["device"] is None:
            chosen[key] = results
    return sorted(chosen.values(), key=lambda results: (_peak(results), results["shape"]))


def render(folder: Path = RESULTS, columns: tuple[str, ...] = COLUMNS) -> str:
    """Return the table, in Markdown.

    Args:
        folder: Where `eval.performance.memory` has written its results.
        columns: The columns, `COLUMNS` or `SHORT`.

    Raises:
        ValueError: when there are none.
    """
    rows = [_row(results) for results in read_results(folder)]
    if not rows:
        raise ValueError(f"{folder} holds no results of whole models; run `python -m eval.performance.memory`.")
    lines = [columns, ("---",) * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _figure(results: dict[str, Any]) -> str:
    return "planned" if results["device"] is None else "allocated"


def _peak(results: dict[str, Any]) -> int:
    return max(figures[_figure(results)] for figures in results["phases"].values())


def _row(results: dict[str, Any]) -> dict[str, str]:
    setup, phases, figure = results["arguments"], results["phases"], _figure(results)
    whole = Footprint({"peak": _peak(results)}, {"run": {}}, 1, 1)
    card = next((f"{card} GB" for card in CARDS if whole.fits(card)), "none")
    gib = {phase: f"{phases[phase][figure] / GIB:.1f} GiB" for phase in ("generate", "evaluate", "learn")}
    return {
        "Card": card,
        "Model": results["shape"],
        "Weights": setup["quantization"],
        "Critic": setup["critic"],
        "Reward adapters": str(setup["reward_adapters"]),
        "Prompt + completion": f"{setup['prompt']} + {setup['completion']}",
        "Micro-batch": str(setup["micro_batch"]),
        "Sampled at": f"{results['generation_batch']} a time",
        "Generate": gib["generate"],
        "Evaluate": gib["evaluate"],
        "Learn": gib["learn"],
        "Peak": f"{_peak(results) / GIB:.1f} GiB",
        "Figures": "planned" if results["device"] is None else f"measured, {results['device']['name']}",
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m eval.performance.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the results")
    parser.add_argument("--short", action="store_true", help="the README's columns")
    parser.add_argument("--write", type=Path, help="file in which to replace the table; otherwise it is printed")
    arguments = parser.parse_args(argv)
    try:
        table = render(arguments.results, SHORT if arguments.short else COLUMNS)
        if arguments.write is None:
            print(between(PART, table))
        else:
            write_text(arguments.write, insert(arguments.write.read_text(encoding="utf-8"), PART, table))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
