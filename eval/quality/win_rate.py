# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Win rate of a model against a baseline: `python -m eval.quality.win_rate completions.jsonl --judge ...`."""

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trl_ext.evaluation.judges import EndpointJudge, Judge, Outcome, RewardJudge
from trl_ext.evaluation.win_rates import Comparisons, bootstrap_win_rate, by_category, count
from trl_ext.files import write_json
from trl_ext.messages.printable import one_line
from trl_ext.messages.redaction import redacted
from trl_ext.rewards import PreferenceReward

from .cli import make_folder, read_rows, run_command

DESCRIPTION = """Compare a model's answers with a baseline's, as `python -m eval.quality` has sampled them: JSON lines
with `prompt`, `model` and `baseline`, and whatever columns the gold reward reads. A tie counts as half a win. Writes
win_rate.json, with the outcome of every comparison."""


def build_table(total: Comparisons, categories: dict[str, Comparisons]) -> Table:
    """Return the win rates as a table, all comparisons last."""
    table = Table(title="Win rate of the model over the baseline, with 95% confidence intervals")
    for column in ("", "win rate", "wins", "ties", "losses", "left out"):
        table.add_column(column, justify="right" if column else "left", no_wrap=column == "")
    for name, row in {**categories, "all": total}.items():
        rate = row.rate
        shown = f"{rate.estimate:.1%} \\[{rate.low:.1%}, {rate.high:.1%}]" if math.isfinite(rate.low) else "-"
        table.add_row(Text(one_line(name)), shown, *(str(n) for n in (row.wins, row.ties, row.losses, row.left_out)))
    return table


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
    """Return the answer as a message of the assistant, where the prompt is a conversation."""
    return (
        [{"role": "assistant", "content": answer}] if isinstance(prompt, list) and isinstance(answer, str) else answer
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args(argv)

    def run() -> None:
        rows = read_rows(Path(arguments.completions), ("prompt", "model", "baseline"))
        column = arguments.category_column
        if column is not None and any(column not in row for row in rows):
            raise ValueError(f"'{arguments.completions}' has rows without the column '{column}'.")
        judge = _make_judge(arguments)
        make_folder(Path(arguments.output))
        outcomes = judge_rows(judge, rows)
        if outcomes.count(None) == len(outcomes):
            raise ValueError(f"None of the {len(outcomes)} comparisons could be judged.")
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

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
