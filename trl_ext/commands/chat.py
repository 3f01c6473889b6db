# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext chat DIR`: talk to a model in the terminal, beside its baseline and with the rewards of each answer."""

import sys
from argparse import Namespace
from collections.abc import Sequence

from trl_ext.messages.refusal import refusing

from .parser import CommandParser

SUMMARY = "talk to a model, beside its base and with rewards"
DESCRIPTION = """Talk to the result of a run, or to any causal language model, in the terminal: its answers stream
beside those of a baseline, with the rewards of each. A model with a chat template holds a conversation; any other
continues each text. Without options it samples as its run did. In the chat, /help lists the commands."""
EPILOG = """A folder of a LoRA run is compared with its base without a second copy: the adapter is switched off. The
answer to --prompt is written without control sequences where the output is no terminal; without baseline and rewards it
is the answer alone."""


def main(argv: Sequence[str] | None = None) -> None:
    """Chat until the user ends it, or answer the text of `--prompt`.

    Raises:
        SystemExit: with status 2 for input that cannot be used.
    """
    arguments = make_parser().parse_args(argv)
    with refusing(ValueError, TypeError, RuntimeError, ImportError, OSError):
        _run(arguments)


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = CommandParser("trl_ext chat", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "model", metavar="DIR", help="output folder or checkpoint of a run, or any model's folder or name"
    )
    parser.add_argument("--prompt", help="answer this text and end; - reads it from the standard input")
    parser.add_argument("--baseline", help="model that answers beside it (where the run's training began)")
    parser.add_argument("--no_baseline", action="store_true", help="let the model answer alone")
    parser.add_argument(
        "--reward", action="append", default=[], metavar="SPEC",
        help="reward of each answer, repeatable: FILE.py:function, toxicity:MODEL, preference:MODEL or a URL",
    )  # fmt: skip
    parser.add_argument("--reward_weights", nargs="+", type=float, help="weight of each reward in the sum (1 each)")
    parser.add_argument("--system", help="system message of the conversation")
    parser.add_argument("--plain", action="store_true", help="continue texts although there is a chat template")
    parser.add_argument("--temperature", type=float, help="0 is greedy (the run's, or 1)")
    parser.add_argument("--top_p", type=float, help="nucleus sampling (the run's, or 1, which is off)")
    parser.add_argument("--max_completion_length", type=int, help="most tokens of an answer (the run's, or 256)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first answer (0)")
    parser.add_argument("--base_model", help="name or folder of the base of a LoRA run, where it has moved")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (the checkpoint's)")
    parser.add_argument("--load_in_4bit", action="store_true", help="quantize the weights to NF4")
    parser.add_argument("--device", help="such as cpu or cuda:1 (the accelerator, if there is one)")
    parser.add_argument("--trust_remote_code", action="store_true", help="let models run code of their own repository")
    return parser


def _run(arguments: Namespace) -> None:
    from trl_ext.chatting.start import answer_once, chat

    options = vars(arguments)
    prompt = options.pop("prompt")
    if prompt is None:
        chat(**options)
    else:
        answer_once(sys.stdin.read() if prompt == "-" else prompt, **options)
