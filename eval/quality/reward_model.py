# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Accuracy and calibration of a reward model: `python -m eval.quality.reward_model MODEL --pairs preferences.jsonl`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from trl_ext.evaluation.reward_models import RewardModelReport, evaluate_reward_models
from trl_ext.files import write_json
from trl_ext.messages.redaction import redacted
from trl_ext.reports.report import write_report
from trl_ext.reports.reward_model import reward_model_plots
from trl_ext.rewards import PreferenceReward

from .cli import check_positive, make_folder, read_rows, run_command

DESCRIPTION = """Report on a reward model, from pairs of a chosen and a rejected answer that it was not trained on:
accuracy with a 95% interval, calibration, margins, and how much it goes by length. Writes reward_model.json and
reward_model.html."""


def read_pairs(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the first rows of a JSON-lines file with `chosen` and `rejected`, and perhaps `prompt`.

    Raises:
        ValueError: what `read_rows` raises; a row with identical sides, an empty one, or text and conversation mixed.
    """
    rows = read_rows(path, ("chosen", "rejected"))[:limit]
    for number, row in enumerate(rows, start=1):
        sides = (row["chosen"], row["rejected"])
        if not all(sides):
            missing = "rejected" if sides[0] else "chosen"
            raise ValueError(f"Row {number} of '{path}' has no '{missing}'; a preference has two sides.")
        if sides[0] == sides[1]:
            raise ValueError(f"Row {number} of '{path}' has identical sides, which prefers nothing; remove it.")
        kinds = {type(part) for part in (*sides, row.get("prompt") or sides[0])}
        if len(kinds) != 1 or not kinds <= {str, list}:
            raise ValueError(f"Row {number} of '{path}' mixes texts and lists of messages; use one kind.")
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m eval.quality.reward_model", description=DESCRIPTION)
    parser.add_argument("model", help="sequence classifier with one label: hub id or folder")
    parser.add_argument("--pairs", required=True, help="JSON lines with chosen, rejected and perhaps prompt")
    parser.add_argument("--num_pairs", type=int, help="the first so many (all)")
    parser.add_argument("--batch_size", type=int, default=32, help="texts scored at a time (32)")
    parser.add_argument(
        "--append_eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end plain texts with EOS, as RewardTrainer does (yes)",
    )
    parser.add_argument("--output", default="quality", help="folder for the report (quality)")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.output)

    def run() -> None:
        check_positive(arguments, "batch_size", *(["num_pairs"] if arguments.num_pairs is not None else []))
        rows = read_pairs(Path(arguments.pairs), arguments.num_pairs)
        make_folder(folder)
        reward = PreferenceReward(arguments.model, batch_size=arguments.batch_size, append_eos=arguments.append_eos)
        report, _ = evaluate_reward_models([reward], rows)
        write_json(folder / "reward_model.json", {"settings": redacted(vars(arguments)), **report.as_dict()})
        _write_page(folder / "reward_model.html", arguments.model, report)
        rate = report.accuracy
        interval = f"{rate.estimate:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
        print(f"accuracy {interval} on {report.pairs} pairs, ece {report.ece:.3f}")
        print(folder / "reward_model.json")

    return run_command(run)


def _write_page(path: Path, model: str, report: RewardModelReport) -> None:
    names = ("pairs", "ece", "nll", "length_correlation", "margin_length_correlation", "chosen_longer")
    summary = {"accuracy": report.accuracy.estimate} | {name: getattr(report, name) for name in names}
    write_report(path, title=f"Reward model {model}", summary=summary, extra_plots=reward_model_plots(report))


if __name__ == "__main__":
    sys.exit(main())
