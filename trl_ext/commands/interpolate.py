# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext interpolate DIR`: a frontier of reward and KL from one run, or the model at one place of it."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_ext.messages.refusal import refusing

from .parser import CommandParser
from .scripts import script_of
from .shared import add_measures, add_prompts

SUMMARY = "a frontier of reward and KL from one run, by interpolating its weights (WARP)"
DESCRIPTION = """Interpolate a trained policy with the model that its training began from: reference + eta * (trained -
reference), of a LoRA adapter a scaled adapter. Without --output the policy is sampled at each eta, and reward, KL, the
least KL for that reward, the judge's quality and the length are printed, saved in DIR/interpolation.json and drawn into
the report of the run; with --output the model at one eta is written."""
EPILOG = """examples: `trl_ext interpolate out` measures with the prompts, rewards and judge that the run in `out`
recorded; `trl_ext interpolate out --eta 0.75 --output gentler` writes the model at 0.75."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write or measure, and print the path of what was written.

    Raises:
        SystemExit: with status 2 for input that cannot be used.
    """
    options = vars(make_parser().parse_args(argv))
    with refusing(ValueError, TypeError, RuntimeError, ImportError, OSError):
        from trl_ext.interpolating.start import run

        run(reopen=_reopen, **options)


def _reopen(recipe: str, folder: Path, **changes: Any) -> Any:
    """Return a run as its recipe reopens it."""
    return runpy.run_path(str(script_of(recipe)))["reopen"](folder, **changes)


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = CommandParser("trl_ext interpolate", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("folder", metavar="DIR", help="output directory of a run, or any fine-tuned model or adapter")
    parser.add_argument(
        "--eta", nargs="+", type=float, help="places on the line: 0 reference, 1 trained, more beyond (0.25 0.5 0.75 1)"
    )
    parser.add_argument("--output", metavar="FOLDER", help="write the model at one eta there, and measure nothing")
    parser.add_argument(
        "--json", dest="json_file", metavar="FILE", help="file of the measurements (interpolation.json in DIR)"
    )
    data = parser.add_argument_group("prompts (the run's own, where DIR records them)")
    add_prompts(data, required=False)
    data.add_argument("--num_prompts", type=int, help="the first so many prompts (all of the run's; 256 of a dataset)")
    what = parser.add_argument_group("measures (the run's own, where DIR records them)")
    add_measures(what)
    what.add_argument("--judge", metavar="SPEC", help="another reward as judge; never the training reward")
    what.add_argument(
        "--frontier_prompts", type=int, default=128,
        help="prompts on which reward, KL and the least KL are measured; 0: all, without the least KL (128)",
    )  # fmt: skip
    what.add_argument(
        "--frontier_samples", type=int, default=32, help="completions of the reference for each of them (32)"
    )
    what.add_argument("--samples", type=int, default=8, help="completions of every other policy for each of them (8)")
    how = parser.add_argument_group("sampling (as in the run)")
    how.add_argument("--temperature", type=float, help="more than 0")
    how.add_argument("--top_p", type=float, help="nucleus sampling")
    how.add_argument("--max_completion_length", type=int, help="most tokens of a completion")
    how.add_argument("--seed", type=int, default=0, help="of sampling (0)")
    how.add_argument("--batch_size", type=int, default=64, help="completions sampled at a time (64)")
    load = parser.add_argument_group("loading")
    load.add_argument("--reference", help="model that training began from (the one that DIR records)")
    load.add_argument("--base_model", help="name or folder of the base of a LoRA run, where it has moved")
    load.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of a frozen base (the checkpoint's)")
    load.add_argument("--device", help="such as cpu or cuda:1 (the accelerator, if there is one)")
    load.add_argument("--trust_remote_code", action="store_true", help="let models run code of their own repository")
    return parser
