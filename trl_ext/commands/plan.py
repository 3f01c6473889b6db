# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`trl_ext plan --model NAME`: the memory of a PPO run by role and phase, and the largest micro-batch for each card."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from trl_ext.messages.notes import telling_warnings
from trl_ext.messages.refusal import refusing
from trl_ext.planner.setup import Setup
from trl_ext.planner.shapes import SHAPES

from .parser import CommandParser

if TYPE_CHECKING:
    from rich.table import Table

    from trl_ext.planner.plan import Footprint

__all__ = ["footprint_table", "main", "make_parser", "setup_from", "setup_parser"]

SUMMARY = "plan the memory of a run for a model and a card"
DESCRIPTION = """Plan the memory of a PPO run from a model's configuration, without its weights: by role and by phase,
the largest micro-batch for every card, and the settings to change where it does not fit. Without --model it
prints the largest known model that fits each card."""
CARDS = (8.0, 12.0, 16.0, 24.0)  # GiB


def main(argv: Sequence[str] | None = None) -> None:
    """Plan one model, or find the largest model, and print tables or JSON."""
    arguments = make_parser().parse_args(argv)
    with refusing(ValueError), telling_warnings():
        if arguments.card is not None and not arguments.card > 0:
            raise ValueError(f"`card` must be more than 0, got {arguments.card}.")
        setup, cards = setup_from(arguments), CARDS if arguments.card is None else (arguments.card,)
        (_print_model if arguments.model else _print_largest)(arguments, setup, cards)


def make_parser() -> CommandParser:
    """Return the parser of this subcommand."""
    parser = setup_parser("trl_ext plan", DESCRIPTION)
    parser.add_argument("--model", help=f"config.json, folder, hub name, or one of {', '.join(SHAPES)}")
    parser.add_argument("--card", type=float, help="memory of one card in GB (8, 12, 16 and 24)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def setup_parser(prog: str, description: str) -> CommandParser:
    """Return a parser with an option for every field of [`Setup`]."""
    parser, hints = CommandParser(prog, description=description), get_type_hints(Setup)
    for field in dataclasses.fields(Setup):
        name, hint, help = field.name, hints[field.name], field.metadata["help"]
        if hint is bool and field.default:
            parser.add_argument(f"--no_{name}", action="store_false", dest=name, help=help)
        elif hint is bool:
            parser.add_argument(f"--{name}", action="store_true", help=help)
        else:
            literal = next((part for part in (hint, *get_args(hint)) if get_origin(part) is Literal), None)
            choices = f"{', '.join(get_args(literal))}; " if literal else ""
            default = "" if field.default is None else f" ({field.default})"
            kind = str if choices else float if hint is float else int
            parser.add_argument(f"--{name}", type=kind, default=field.default, help=f"{choices}{help}{default}")
    return parser


def setup_from(arguments: argparse.Namespace) -> Setup:
    """Return a [`Setup`] from the options that `setup_parser` adds.

    Raises:
        ValueError: for a value out of range, or settings that exclude each other.
    """
    return Setup(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Setup)})


def footprint_table(title: str, footprint: "Footprint") -> "Table":
    """Return a table of memory in GiB, of a small run in MiB: a row for each role and part, a column for each phase."""
    from rich.table import Table

    from trl_ext.planner.plan import GIB

    unit, scale = ("GiB", GIB) if footprint.peak >= GIB else ("MiB", GIB / 1024)
    table = Table(title=title, caption=f"{unit}, as torch.cuda.max_memory_allocated counts")
    for column in ("", *footprint.phases):
        table.add_column(column, justify="right" if column else "left")
    parts = list(dict.fromkeys(part for added in footprint.phases.values() for part in added))
    rows = {role: [size] * len(footprint.phases) for role, size in footprint.resident.items()}
    rows |= {part: [added.get(part, 0) for added in footprint.phases.values()] for part in parts}
    rows["peak"] = [footprint.phase_peak(phase) for phase in footprint.phases]
    for name, sizes in rows.items():
        table.add_row(name, *(_cell(size / scale) for size in sizes), style="bold" * (name == "peak"))
    return table


def _cell(size: float) -> str:
    return "" if not size else f"{size:.2f}" if size >= 0.005 else "< 0.01"


def _print_largest(arguments: argparse.Namespace, setup: Setup, cards: Sequence[float]) -> None:
    from trl_ext.planner import plan as planner

    models = planner.largest_model(setup, cards)
    print(json.dumps({"largest_model": models}) if arguments.json else _by_card("Largest model", models))


def _print_model(arguments: argparse.Namespace, setup: Setup, cards: Sequence[float]) -> None:
    from rich.console import Console

    from trl_ext.planner import plan as planner

    config = planner.load_config(arguments.model)
    planner.check_context(config, setup)
    footprint = planner.plan(config, setup)
    too_small = [card for card in cards if not footprint.fits(card)]
    micro_batches = planner.largest_micro_batch(config, setup, cards)
    checkpoints = planner.fewest_checkpoints(config, setup, cards) if setup.gradient_checkpointing else {}
    sampled = {card: None if card in too_small else planner.sampling_batch(config, setup, card) for card in cards}
    advice = planner.advise(config, setup, footprint.peak) if too_small else []
    if arguments.json:
        results = dataclasses.asdict(footprint) | {
            "phase_peaks": {phase: footprint.phase_peak(phase) for phase in footprint.phases},
            "peak": footprint.peak,
            "cuda_context": planner.CUDA_CONTEXT,
            "usable_fraction": planner.USABLE_FRACTION,
            "largest_micro_batch": micro_batches,
            "every_n_layers": checkpoints,
            "sampling_batch": sampled,
            "too_small": too_small,
            "advice": dict(advice),
        }
        print(json.dumps(results, indent=2))
        return
    Console().print(footprint_table(f"{arguments.model}, micro-batch {setup.micro_batch}", footprint))
    scored = f", scored by reward adapters {footprint.reward_batch} at a time" if setup.reward_adapters else ""
    print(f"Sampled {footprint.generation_batch} at a time (local_rollout_forward_batch_size){scored}.")
    whole = " (the whole rollout)"
    sizes = {card: f"{n}{whole}" if n == setup.rollout else n for card, n in micro_batches.items()}
    print(_by_card("Largest micro-batch", sizes))
    text = ", ".join(f"{card:g} GB: {n or 'does not fit'}" for card, n in sampled.items())
    print(f"Room to sample at a time (local_rollout_forward_batch_size 0): {text}")
    if checkpoints:
        words = {None: "does not fit", 0: "no layer", 1: "every layer"}
        chosen = (f"{card:g} GB: {words.get(n, f'one of {n}')}" for card, n in checkpoints.items())
        print(f"Layers to checkpoint (every_n_layers of gradient_checkpointing_kwargs): {', '.join(chosen)}")
    if too_small:
        names = ", ".join(f"{card:g}" for card in too_small)
        print(f"This does not fit into {names} GB. What to change, by what each saves at the peak:")
        for text, saved in advice:
            print(f"  {text} saves {saved / planner.GIB:.2f} GiB")


def _by_card(title: str, values: dict[float, Any]) -> str:
    from trl_ext.planner.plan import CUDA_CONTEXT, GIB, USABLE_FRACTION

    rule = f"within {USABLE_FRACTION:.0%} of a card less {CUDA_CONTEXT / GIB} GB for CUDA's context"
    return f"{title} ({rule}): " + ", ".join(f"{card:g} GB: {value or 'none'}" for card, value in values.items())
