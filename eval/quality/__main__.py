# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Compare the completions of two models: `python -m eval.quality --model A --baseline B --prompts P`.

`trl_ext compare A B --prompts P` is the command to use: it knows rewards, judges and the settings of a run. This one
keeps its files, `quality.json` and `completions.jsonl`, which `eval.quality.win_rate` reads.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from trl_ext.comparing.measuring import Comparison, measure
from trl_ext.comparing.request import prepare
from trl_ext.comparing.showing import as_json, print_comparison
from trl_ext.files import write_json, write_json_lines
from trl_ext.messages.redaction import redacted
from trl_ext.running.finished import Sampling

from .cli import add_common_arguments, check_positive, make_folder, run_command

DESCRIPTION = """Sample one completion per prompt from a model and from a baseline, and compare them with 95% bootstrap
confidence intervals: toxicity (fraction of completions that the judge calls toxic, and its mean probability),
perplexity of the completion under a frozen reference given its prompt (text, without the end-of-sequence token),
distinct-1 and distinct-2, self-BLEU, mean length in tokens, and the fractions of empty and of terminated
completions. `trl_ext compare` does the same, and compares rewards and win rates."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.quality", description=DESCRIPTION)
    parser.add_argument("--model", required=True, help="model or PEFT adapter to judge: hub id or folder")
    parser.add_argument("--baseline", required=True, help="model it is compared with, usually where training began")
    parser.add_argument("--reference", help="frozen model of the perplexity (the baseline)")
    add_common_arguments(parser)
    parser.add_argument("--num_prompts", type=int, default=512, help="the first so many prompts (512)")
    parser.add_argument(
        "--tokenization", choices=["words", "characters"], default="words", help="for diversity (words)"
    )
    parser.add_argument("--num_resamples", type=int, default=2000, help="bootstrap resamples (2000)")
    parser.add_argument("--output", default="quality", help="folder for quality.json and completions.jsonl (quality)")
    return parser


def evaluate_pair(arguments: argparse.Namespace) -> Comparison:
    """Sample from both models at temperature 1 from the whole distribution, and measure."""
    return measure(
        prepare(
            arguments.model,
            arguments.baseline,
            arguments.prompts,
            prompt_column=arguments.prompt_column,
            split=arguments.split,
            num_prompts=arguments.num_prompts,
            sampling=Sampling(max_completion_length=arguments.max_new_tokens),
            toxicity_model=arguments.judge_model,
            toxic_label=arguments.toxic_label,
            reference=arguments.reference,
            tokenization=arguments.tokenization,
            batch_size=arguments.batch_size,
            num_resamples=arguments.num_resamples,
            seed=arguments.seed,
            options=("model", "baseline"),
        )
    )


def write_results(folder: Path, arguments: argparse.Namespace, comparison: Comparison) -> None:
    """Write `quality.json` (settings and intervals) and `completions.jsonl` (one prompt a line) into `folder`."""
    samples = comparison.sides[0].samples
    settings: dict[str, Any] = redacted(vars(arguments)) | {"num_prompts": len(samples.prompts)}
    results = as_json(comparison, settings)
    write_json(folder / "quality.json", {name: results[name] for name in ("settings", "measures")})
    lines = [{name: row[name] for name in ("prompt", "model", "baseline")} for row in results["samples"]]
    write_json_lines(folder / "completions.jsonl", lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    folder = Path(arguments.output)

    def run() -> None:
        check_positive(arguments, "max_new_tokens", "batch_size", "num_prompts", "num_resamples")
        make_folder(folder)
        comparison = evaluate_pair(arguments)
        write_results(folder, arguments, comparison)
        print_comparison(comparison, Console())
        print(folder / "quality.json")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
