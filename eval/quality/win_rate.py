# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Win rate of a model against a baseline: `python -m eval.quality.win_rate completions.jsonl --judge ...`."""

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_ext.evaluation.intervals import Interval, bootstrap_mean, wilson
from trl_ext.files import write_json
from trl_ext.messages.printable import one_line
from trl_ext.messages.redaction import redacted
from trl_ext.rewards import PreferenceReward

from .cli import make_folder, print_error
from .judges import EndpointJudge, Judge, Outcome, RewardJudge

DESCRIPTION = """Compare a model's answers with a baseline's, as `python -m eval.quality` has sampled them: JSON lines
with `prompt`, `model` and `baseline`, and whatever columns the gold reward reads. A tie counts as half a win. Writes
win_rate.json, with the outcome of every comparison."""


@dataclass(frozen=True)
class Comparisons:
    """How often the model won, and how sure that is.

    Attributes:
        wins, losses, ties: Of the comparisons that were judged.
        left_out: Comparisons without a verdict.
    """

    wins: int
    losses: int
    ties: int
    left_out: int = 0

    @property
    def rate(self) -> Interval:
        """The win rate with its 95% confidence interval."""
        return win_rate(self.wins, self.losses, self.ties)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = {"wins": self.wins, "losses": self.losses, "ties": self.ties, "left_out": self.left_out}
        return {"win_rate": self.rate.as_dict(), **counts}


def win_rate(wins: int, losses: int, ties: int = 0, *, confidence: float = 0.95) -> Interval:
    """(wins + ties / 2) / comparisons, with Wilson's interval.

    A tie varies less than a win and a loss, so with ties the interval is a little wider than it need be;
    `bootstrap_win_rate` is not.

    Raises:
        ValueError: negative counts, a confidence outside (0, 1).
    """
    if min(wins, losses, ties) < 0:
        raise ValueError(f"Got {wins} wins, {losses} losses and {ties} ties; counts are not negative.")
    return wilson(wins + ties / 2, wins + losses + ties, confidence=confidence)


def bootstrap_win_rate(outcomes: Sequence[Outcome], **options: Any) -> Interval:
    """The win rate with a bootstrap interval over prompts; comparisons that were not judged do not count.

    Args:
        outcomes: As a judge returns them.
        options: Those of `bootstrap`.
    """
    scores = [(outcome + 1) / 2 for outcome in outcomes if outcome is not None]
    return bootstrap_mean(scores, **options) if scores else Interval(math.nan, math.nan, math.nan)


def count(outcomes: Sequence[Outcome]) -> Comparisons:
    """Count the outcomes that a judge returned."""
    return Comparisons(*(outcomes.count(outcome) for outcome in (1, -1, 0, None)))


def by_category(outcomes: Sequence[Outcome], categories: Sequence[Any]) -> dict[str, Comparisons]:
    """The same for each category, in the order in which they first come up.

    Raises:
        ValueError: not one category for each outcome.
    """
    if len(outcomes) != len(categories):
        raise ValueError(f"There are {len(outcomes)} comparisons and {len(categories)} categories; give one each.")
    names = [str(category) for category in categories]
    return {
        name: count([outcome for outcome, own in zip(outcomes, names, strict=True) if own == name])
        for name in dict.fromkeys(names)
    }


def build_table(total: Comparisons, categories: dict[str, Comparisons]) -> Table:
    """The win rates as a table, all comparisons last."""
    table = Table(title="Win rate of the model over the baseline, with 95% confidence intervals")
    for column in ("", "win rate", "wins", "ties", "losses", "left out"):
        table.add_column(column, justify="right" if column else "left", no_wrap=column == "")
    for name, row in {**categories, "all": total}.items():
        rate = row.rate
        shown = f"{rate.estimate:.1%} \\[{rate.low:.1%}, {rate.high:.1%}]" if math.isfinite(rate.low) else "-"
        table.add_row(Text(one_line(name)), shown, *(str(n) for n in (row.wins, row.ties, row.losses, row.left_out)))
    return table


# Command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.quality.win_rate", description=DESCRIPTION)
    parser.add_argument("completions", help="JSON lines with prompt, model and baseline")
    judge = parser.add_mutually_exclusive_group(required=True)
    judge.add_argument("--gold", help="gold reward function, as package.module:name")
    judge.add_argument("--reward_model", help="sequence classifier with one label: hub id or folder")
    judge.add_argument("--endpoint", help="base URL of an OpenAI-compatible endpoint; see --endpoint_model")
    parser.add_argument("--endpoint_model", help="name of the judging model at --endpoint")
    parser.add_argument("--api_key_env", default="OPENAI_API_KEY", help="variable with its key (OPENAI_API_KEY)")
    parser.add_argument("--margin", type=float, default=0.0, help="rewards that differ by no more are a tie (0)")
    parser.add_argument("--category_column", help="a table by this column")
    parser.add_argument("--output", default="quality", help="folder for win_rate.json (quality)")
    return parser


def read_comparisons(path: Path) -> list[dict[str, Any]]:
    """Rows with `prompt`, `model` and `baseline`.

    Raises:
        ValueError: no such file, a line that is no JSON object, a row without one of them, or no row.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read as JSON lines ({error}).") from error
    for number, row in enumerate(rows, start=1):
        missing = {"prompt", "model", "baseline"} - (row.keys() if isinstance(row, dict) else set())
        if missing:
            raise ValueError(f"Row {number} of '{path}' has no {sorted(missing)}; every row needs all three.")
    if not rows:
        raise ValueError(f"'{path}' is empty; give at least one comparison.")
    return rows


def _make_judge(arguments: argparse.Namespace) -> Judge:
    if arguments.gold is not None:
        return RewardJudge(_load_function(arguments.gold), margin=arguments.margin)
    if arguments.reward_model is not None:
        reward = PreferenceReward(arguments.reward_model)
        reward.scorer.load()
        return RewardJudge(reward, margin=arguments.margin)
    if arguments.endpoint_model is None:
        raise ValueError("--endpoint needs --endpoint_model, the name of the model that judges.")
    return EndpointJudge(arguments.endpoint, arguments.endpoint_model, api_key_env=arguments.api_key_env)


def _load_function(name: str) -> Callable:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--gold {name} is not to be found ({error}); give package.module:name.") from error


def judge_rows(judge: Judge, rows: Sequence[dict[str, Any]]) -> list[Outcome]:
    """Let a judge compare `model` with `baseline` in every row; the other columns go to the judge."""
    columns = {key: [row.get(key) for row in rows] for key in rows[0] if key not in ("prompt", "model", "baseline")}
    prompts = [row["prompt"] for row in rows]
    answers, baselines = ([_as_completion(row[side], row["prompt"]) for row in rows] for side in ("model", "baseline"))
    return judge(prompts, answers, baselines, **columns)


def _as_completion(answer: Any, prompt: Any) -> Any:
    """A text answers a conversation with a message."""
    return (
        [{"role": "assistant", "content": answer}] if isinstance(prompt, list) and isinstance(answer, str) else answer
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        rows = read_comparisons(Path(arguments.completions))
        column = arguments.category_column
        if column is not None and any(column not in row for row in rows):
            raise ValueError(f"'{arguments.completions}' has rows without the column '{column}'.")
        judge = _make_judge(arguments)
        make_folder(Path(arguments.output))
        outcomes = judge_rows(judge, rows)
        if outcomes.count(None) == len(outcomes):
            raise ValueError(f"None of the {len(outcomes)} comparisons could be judged.")
    except ValueError as error:
        print_error(error)
        return 2
    total = count(outcomes)
    categories = by_category(outcomes, [row[column] for row in rows]) if column is not None else {}
    results: dict[str, Any] = {
        "settings": redacted(vars(arguments)),
        "all": total.as_dict() | {"bootstrap": bootstrap_win_rate(outcomes).as_dict()},
        "categories": {name: row.as_dict() for name, row in categories.items()},
        "outcomes": outcomes,
    }
    if isinstance(judge, EndpointJudge):
        results["disagreements_between_orders"] = judge.disagreements
    path = Path(arguments.output) / "win_rate.json"
    write_json(path, results)
    Console().print(build_table(total, categories))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
