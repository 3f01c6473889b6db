# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The optimal frontier of reward over KL of a model: `python -m eval.quality.frontier --model M --prompts P ...`."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from trl_ext.evaluation.best_of_n import best_of_n
from trl_ext.evaluation.frontier import MIN_ESS, describe_frontier
from trl_ext.evaluation.sampling import Samples
from trl_ext.evaluation.toxicity import THRESHOLD
from trl_ext.files import write_json
from trl_ext.messages.redaction import redacted
from trl_ext.rewards.toxicity import OUTPUTS, ToxicityReward

from .cli import (
    add_common_arguments,
    check_positive,
    load_model,
    make_folder,
    make_judge,
    read_prompts,
    run_command,
    sample_completions,
)

DESCRIPTION = """Compute the highest reward that any policy can reach for a given KL to the model, without training:
sample completions of the model, score them and weight them by exp(reward / beta). Every row is the optimum for one KL
coefficient beta: its KL in nats per completion, its reward, and what else these completions are like. `ess` is the
effective number of samples per prompt; where it is below 4 the KL is a lower bound: raise --samples. A second table has
the best of n = 1, 2, 4, ... completions by the reward, with an upper bound of its KL."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.quality.frontier", description=DESCRIPTION)
    parser.add_argument("--model", required=True, help="reference model that training starts from: hub id or folder")
    parser.add_argument("--toxicity_model", required=True, help="sequence classifier that is the training reward")
    parser.add_argument("--reward", choices=OUTPUTS, default="logit", help="its output that is the reward (logit)")
    add_common_arguments(parser)
    parser.add_argument("--num_prompts", type=int, default=128, help="the first so many prompts (128)")
    parser.add_argument("--samples", type=int, default=64, help="completions per prompt (64)")
    parser.add_argument("--betas", type=float, nargs="+", help="KL coefficients (24, fitted to the reward's spread)")
    parser.add_argument("--output", default="frontier.json", help="JSON file to write (frontier.json)")
    parser.add_argument("--plot", help="image to draw, for example frontier.png")
    return parser


def compute(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sample, score and weight; return the content of the JSON file."""
    prompts = read_prompts(arguments)
    scorer = ToxicityReward(arguments.toxicity_model, output=arguments.reward, batch_size=arguments.batch_size)
    scorer.scorer.check()
    judge = make_judge(arguments)
    samples = sample_completions(
        *load_model(arguments.model),
        prompts,
        num_samples=arguments.samples,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    shape = (len(prompts), arguments.samples)
    rewards = torch.tensor(scorer(samples.prompts, samples.completions), dtype=torch.float64).view(shape)
    values = {name: value.view(shape) for name, value in _values(samples, judge).items()}
    reference = {"reward": float(rewards.mean())} | {name: float(value.mean()) for name, value in values.items()}
    settings = redacted(vars(arguments)) | {"num_prompts": len(prompts)}
    points = describe_frontier(rewards, values, arguments.betas)
    best = best_of_n(rewards, values)
    return {"settings": settings, "reference": reference, "points": points, "best_of_n": best}


def _values(samples: Samples, judge: ToxicityReward | None) -> dict[str, Tensor]:
    values = {}
    if judge is not None:
        scores = torch.tensor(judge.toxicity(samples.completions), dtype=torch.float64)
        values = {"toxicity": (scores > THRESHOLD).double(), "toxicity_probability": scores}
    values["mean_length"] = torch.tensor(samples.lengths, dtype=torch.float64)
    values["empty_fraction"] = torch.tensor(samples.empty, dtype=torch.float64)
    return values


def build_table(results: dict[str, Any]) -> Table:
    """Return the frontier as a table, the untouched model first; rows of too few effective samples are dim."""
    names = list(results["points"][0])
    table = Table(title="Optimal reward over KL (nats per completion)")
    for name in names:
        table.add_column(name, justify="right")
    reference = {"beta": float("inf"), "kl": 0.0, "ess": float(results["settings"]["samples"])} | results["reference"]
    for row in [reference, *results["points"]]:
        table.add_row(*(f"{row[name]:.3f}" for name in names), style="dim" if row["ess"] < MIN_ESS else "")
    return table


def build_best_of_n_table(results: dict[str, Any]) -> Table:
    """Return what the best of n completions reaches without training, as a table."""
    names = list(results["best_of_n"][0])
    table = Table(title="Best of n by the reward; its KL is at most kl_bound")
    for name in names:
        table.add_column(name, justify="right")
    for row in results["best_of_n"]:
        table.add_row(str(row["n"]), *(f"{row[name]:.3f}" for name in names[1:]))
    return table


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw reward, and the judge's toxicity if there is one, over KL."""
    # Imported here: only a run with --plot pays for it.
    from matplotlib.figure import Figure

    names = [name for name in ("reward", "toxicity") if name in results["reference"]]
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        kept = [row for row in results["points"] if row["ess"] >= MIN_ESS]
        axes.plot(
            [0.0, *(row["kl"] for row in kept)],
            [results["reference"][name], *(row[name] for row in kept)],
            "o-",
            label="optimum",
        )
        best = [(row["kl_bound"], row[name]) for row in results["best_of_n"]]
        axes.plot(*zip(*best, strict=True), "s--", label="best of n (its KL is at most this)")
        axes.legend()
        axes.set_xlabel("KL to the reference (nats per completion)")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args(argv)

    def run() -> None:
        check_positive(arguments, "max_new_tokens", "batch_size", "num_prompts", "samples")
        make_folder(Path(arguments.output).parent)
        results = compute(arguments)
        write_json(Path(arguments.output), results)
        if arguments.plot is not None:
            draw(results, Path(arguments.plot))
        Console().print(build_table(results))
        Console().print(build_best_of_n_table(results))
        print(arguments.output)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
