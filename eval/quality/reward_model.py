# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How good a reward model is: `python -m eval.quality.reward_model MODEL --pairs preferences.jsonl`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from trl_ext.files import write_json
from trl_ext.messages.redaction import redacted
from trl_ext.reports.report import write_report
from trl_ext.reports.reward_model import RewardModelReport, describe_reward_model, reward_model_plots
from trl_ext.rewards import PreferenceReward

from .cli import check_positive, make_folder, print_error

DESCRIPTION = """Report on a reward model, from pairs of a chosen and a rejected answer that it was not trained on:
accuracy with a 95% interval, calibration, margins, and how much it goes by length. Writes reward_model.json and
reward_model.html."""


def read_pairs(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The first rows of a JSON-lines file with `chosen` and `rejected`, and perhaps `prompt`: texts or conversations.

    Raises:
        ValueError: no such file, a line that is no JSON object, a row without one of the sides, with identical sides
            or with text and conversation mixed, or no row.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()][:limit]
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read as JSON lines ({error}).") from error
    if not rows:
        raise ValueError(f"'{path}' is empty; give at least one pair.")
    for number, row in enumerate(rows, start=1):
        sides = [row.get(side) if isinstance(row, dict) else None for side in ("chosen", "rejected")]
        if not all(sides):
            missing = "chosen" if not sides[0] else "rejected"
            raise ValueError(f"Row {number} of '{path}' has no '{missing}'; a preference has two sides.")
        if sides[0] == sides[1]:
            raise ValueError(f"Row {number} of '{path}' has identical sides, which prefers nothing; remove it.")
        kinds = {type(part) for part in (*sides, row.get("prompt") or sides[0])}
        if len(kinds) != 1 or not kinds <= {str, list}:
            raise ValueError(f"Row {number} of '{path}' mixes texts and lists of messages; use one kind.")
    return rows


def evaluate_reward_model(reward: PreferenceReward, rows: list[dict[str, Any]]) -> RewardModelReport:
    """Score both sides of every row with a reward model and describe it; lengths are in the model's own tokens."""
    scores, lengths = {}, {}
    for side in ("chosen", "rejected"):
        empty: Any = "" if isinstance(rows[0][side], str) else []
        prompts = [row.get("prompt") or empty for row in rows]
        completions = [row[side] for row in rows]
        scores[side] = reward.scores(prompts, completions)
        texts = [c if isinstance(c, str) else "\n".join(str(m.get("content", "")) for m in c) for c in completions]
        lengths[side] = [len(ids) for ids in reward.scorer.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return describe_reward_model(scores["chosen"], scores["rejected"], lengths["chosen"], lengths["rejected"])


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
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
    try:
        check_positive(arguments, "batch_size", *(["num_pairs"] if arguments.num_pairs is not None else []))
        rows = read_pairs(Path(arguments.pairs), arguments.num_pairs)
        make_folder(Path(arguments.output))
        reward = PreferenceReward(arguments.model, batch_size=arguments.batch_size, append_eos=arguments.append_eos)
        report = evaluate_reward_model(reward, rows)
    except ValueError as error:
        print_error(error)
        return 2
    folder, rate = Path(arguments.output), report.accuracy
    results = {"settings": redacted(vars(arguments)), **report.as_dict()}
    write_json(folder / "reward_model.json", results)
    _write_page(folder / "reward_model.html", arguments.model, report)
    print(
        f"accuracy {rate.estimate:.3f} [{rate.low:.3f}, {rate.high:.3f}] on {report.pairs} pairs, ece {report.ece:.3f}"
    )
    print(folder / "reward_model.json")
    return 0


def _write_page(path: Path, model: str, report: RewardModelReport) -> None:
    names = ("pairs", "ece", "nll", "length_correlation", "margin_length_correlation", "chosen_longer")
    summary = {"accuracy": report.accuracy.estimate} | {name: getattr(report, name) for name in names}
    write_report(path, title=f"Reward model {model}", summary=summary, extra_plots=reward_model_plots(report))


if __name__ == "__main__":
    sys.exit(main())
