# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext merge RUN OUTPUT`: write the model of a LoRA run as a plain model."""

import sys
from collections.abc import Sequence

from trl_ext.messages.notes import telling_warnings
from trl_ext.messages.refusal import refusing

from .parser import CommandParser

SUMMARY = "merge the adapter of a LoRA run into its base model"


def main(argv: Sequence[str] | None = None) -> None:
    """Merge, and print the folder of the merged model."""
    arguments = make_parser().parse_args(argv)

    import torch

    from trl_ext.actor_critic.merge import merge
    from trl_ext.model_card import add_merged_card
    from trl_ext.running.bars import without_bars

    if not sys.stderr.isatty():
        without_bars()
    with refusing(ImportError, OSError, ValueError), telling_warnings():
        merge(
            arguments.run,
            arguments.output,
            dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
            original_base=arguments.original_base,
            base_model=arguments.base_model,
        )
        add_merged_card(arguments.run, arguments.output)
    print(arguments.output)


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = CommandParser("trl_ext merge", description="Write a plain model that needs neither PEFT nor bitsandbytes.")
    parser.add_argument("run", help="folder of a run with LoRA")
    parser.add_argument("output", help="folder for the merged model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the checkpoint's own")
    parser.add_argument("--base_model", help="name or folder of the base model, where it has moved")
    parser.add_argument(
        "--original_base", action="store_true", help="merge into the original weights, not the dequantized ones"
    )
    return parser
