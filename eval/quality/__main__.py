# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Compare the completions of two models: `python -m eval.quality --model A --baseline B --prompts P`."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from trl_ext.evaluation.intervals import Interval
from trl_ext.evaluation.measures import (
    Measure,
    compare,
    diversity_measures,
    length_measures,
    perplexity_measure,
    toxicity_measures,
)
from trl_ext.evaluation.sampling import Samples
from trl_ext.files import write_json, write_json_lines
from trl_ext.messages.redaction import redacted
from trl_ext.text.rows import is_conversation

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

DESCRIPTION = """Sample one completion per prompt from a model and from a baseline, and compare them with 95% bootstrap
confidence intervals: toxicity (fraction of completions that the judge calls toxic, and its mean probability),
perplexity of the completion under a frozen reference given its prompt (text, without the end-of-sequence token),
distinct-1 and distinct-2, self-BLEU, mean length in tokens, and the fractions of empty and of terminated
completions."""

Comparison = dict[str, dict[str, Interval]]


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


def evaluate_pair(arguments: argparse.Namespace) -> tuple[Comparison, dict[str, Samples]]:
    """Sample from both models and measure; return the comparison by measure, and the samples by role."""
    prompts, judge = read_prompts(arguments), make_judge(arguments)
    samples: dict[str, Samples] = {}
    for role in ("model", "baseline"):
        reference = load_model(getattr(arguments, role))
        samples[role] = sample_completions(
            *reference,
            prompts,
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            description=f"Sampling from the {role}",
        )
    if arguments.reference is not None:
        reference = load_model(arguments.reference)

    def measures(role: str) -> dict[str, Measure]:
        texts, options = samples[role].completions, {"batch_size": arguments.batch_size}
        found = {} if judge is None else toxicity_measures(judge.toxicity(texts))
        found["perplexity"] = perplexity_measure(
            samples[role], *reference, rendered=is_conversation(prompts[0]), **options
        )
        return found | diversity_measures(texts, arguments.tokenization) | length_measures(samples[role])

    ours, theirs = measures("model"), measures("baseline")
    options = {"num_resamples": arguments.num_resamples, "seed": arguments.seed}
    names = tqdm(ours, desc="Bootstrap", leave=False, disable=None)
    return {name: compare(ours[name], theirs[name], **options) for name in names}, samples


def _format(interval: Interval) -> str:
    if math.isnan(interval.estimate):
        return "not defined"
    digits = 1 if abs(interval.estimate) >= 10 else 3
    return f"{interval.estimate:.{digits}f} \\[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def build_table(comparison: Comparison, num_prompts: int) -> Table:
    """Return the comparison as a table; a difference whose interval excludes 0 is bold."""
    table = Table(title=f"Quality on {num_prompts} prompts, with 95% bootstrap intervals")
    for column in ("", "model", "baseline", "difference"):
        table.add_column(column, justify="right" if column else "left", no_wrap=column == "")
    for name, row in comparison.items():
        difference = row["difference"]
        style = "bold" if difference.low > 0 or difference.high < 0 else ""
        cells = [_format(row[column]) for column in ("model", "baseline", "difference")]
        table.add_row(name, cells[0], cells[1], f"[{style}]{cells[2]}[/{style}]" if style else cells[2])
    return table


def write_results(
    folder: Path, arguments: argparse.Namespace, comparison: Comparison, samples: dict[str, Samples]
) -> None:
    """Write `quality.json` (settings and intervals) and `completions.jsonl` (one prompt a line) into `folder`."""
    results: dict[str, Any] = {
        "settings": redacted(vars(arguments)) | {"num_prompts": len(samples["model"].prompts)},
        "measures": {
            name: {column: interval.as_dict() for column, interval in row.items()} for name, row in comparison.items()
        },
    }
    write_json(folder / "quality.json", results)
    model, baseline = samples["model"], samples["baseline"]
    rows = zip(model.prompts, model.completions, baseline.completions, strict=True)
    lines = [{"prompt": prompt, "model": ours, "baseline": theirs} for prompt, ours, theirs in rows]
    write_json_lines(folder / "completions.jsonl", lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    folder = Path(arguments.output)

    def run() -> None:
        check_positive(arguments, "max_new_tokens", "batch_size", "num_prompts", "num_resamples")
        make_folder(folder)
        comparison, samples = evaluate_pair(arguments)
        write_results(folder, arguments, comparison, samples)
        Console().print(build_table(comparison, len(samples["model"].prompts)))
        print(folder / "quality.json")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
