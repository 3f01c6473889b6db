# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext compare A B --prompts P`: quality, rewards and win rate of two models on the same prompts."""

from collections.abc import Sequence

from trl_ext.messages.refusal import refusing

from .parser import CommandParser
from .shared import add_measures, add_prompts

SUMMARY = "compare two models: quality, rewards, win rate"
DESCRIPTION = """Sample one completion per prompt from two models and compare them, prompt by prompt, with 95% bootstrap
intervals: rewards, toxicity (a classifier's), perplexity under a frozen reference, distinct-1 and distinct-2,
self-BLEU, length, and the fractions of empty and of terminated completions; and let a judge count wins."""


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, and print a table.

    Raises:
        SystemExit: with status 2 for input that cannot be used.
    """
    options = vars(make_parser().parse_args(argv))
    with refusing(ValueError, TypeError, RuntimeError, ImportError, OSError):
        from trl_ext.comparing.start import run

        run(**options)


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = CommandParser("trl_ext compare", description=DESCRIPTION)
    parser.add_argument("model", metavar="A", help="output folder or checkpoint of a run, or any model")
    parser.add_argument("baseline", metavar="B", nargs="?", help="the other model (where the training of A began)")
    data = parser.add_argument_group("prompts")
    add_prompts(data, required=True)
    data.add_argument("--num_prompts", type=int, default=512, help="the first so many prompts (512)")
    what = parser.add_argument_group("measures")
    add_measures(what)
    what.add_argument("--reference", help="frozen model of the perplexity (B)")
    what.add_argument(
        "--tokenization", choices=["words", "characters"], default="words", help="for distinct-n and self-BLEU (words)"
    )
    what.add_argument("--judge", metavar="SPEC", help="win rate: the answer with the higher of these rewards wins")
    what.add_argument("--margin", type=float, default=0.0, help="rewards of the judge that differ by no more tie (0)")
    what.add_argument("--judge_endpoint", metavar="URL", help="win rate by a model of an OpenAI-compatible endpoint")
    what.add_argument("--judge_model", metavar="NAME", help="name of that model")
    what.add_argument("--judge_criteria", metavar="TEXT", help="what makes an answer better, as a sentence")
    what.add_argument("--api_key_env", default="OPENAI_API_KEY", help="variable with its key (OPENAI_API_KEY)")
    how = parser.add_argument_group("sampling (as in the run of A)")
    how.add_argument("--temperature", type=float, help="0 is greedy")
    how.add_argument("--top_p", type=float, help="nucleus sampling")
    how.add_argument("--max_completion_length", type=int, help="most tokens of a completion (the run's, or 64)")
    how.add_argument("--seed", type=int, default=0, help="of sampling and bootstrap (0)")
    how.add_argument("--batch_size", type=int, default=64, help="completions sampled or scored at a time (64)")
    how.add_argument("--num_resamples", type=int, default=2000, help="bootstrap resamples (2000)")
    load = parser.add_argument_group("loading")
    load.add_argument("--base_model", help="name or folder of the base of a LoRA run A, where it has moved")
    load.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (the checkpoint's)")
    load.add_argument("--load_in_4bit", action="store_true", help="quantize the weights to NF4")
    load.add_argument("--device", help="such as cpu or cuda:1 (the accelerator, if there is one)")
    load.add_argument("--trust_remote_code", action="store_true", help="let models run code of their own repository")
    out = parser.add_argument_group("output")
    out.add_argument("--show", type=int, default=0, metavar="N", help="print the first N samples side by side (0)")
    out.add_argument("--output", metavar="FILE", help="write measures and samples as JSON")
    return parser
