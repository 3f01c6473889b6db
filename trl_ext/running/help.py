# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`--help` of the recipes: their options as data, and the text and the parser made of them.

The recipes' own parsers import transformers, which takes seconds. So the options of each recipe are also in a file,
`options.json`, from which `trl_ext COMMAND --help` and the shell's completion answer at once.
"""

import json
import shutil
from argparse import Action, ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["COMMON", "OPTIONS_FILE", "Option", "Recipe", "help_parser", "read_recipes"]

OPTIONS_FILE = Path(__file__).with_name("options.json")
COMMON_TITLE = "common options"
COMMON = {
    "model_name_or_path": "Model to train: a folder or an id of the Hub. Default: the embedded example's.",
    "use_peft": "Train LoRA adapters and no other weights.",
    "load_in_4bit": "Hold the base in 4 bits (NF4) and train LoRA adapters on it.",
    "output_dir": "Folder of the model, the checkpoints and the report.",
    "learning_rate": "Initial learning rate of the policy.",
    "per_device_train_batch_size": "Completions sampled and learned from at a time on one device.",
    "gradient_accumulation_steps": "Such batches in a rollout, on each device.",
    "bf16": "Compute in bfloat16; the trained weights stay float32. Default: where the device has it.",
    "use_cpu": "Train on the CPU although there is a GPU.",
    "seed": "Seed of the weights, the data and the sampling.",
    "logging_steps": "Optimizer steps from one line of the log to the next.",
    "eval_strategy": "When to evaluate during the training.",
    "eval_steps": "Steps from one evaluation to the next, with `--eval_strategy steps`.",
    "save_steps": "Steps from one checkpoint to the next.",
    "report_to": "Tracker of the metrics: tensorboard, trackio, wandb, ...; none for none.",
    "resume_from_checkpoint": "true: go on from the newest checkpoint in `output_dir`; or a checkpoint's folder.",
}
_GENERAL = "general"
_WIDEST = 40  # of a list of choices behind the name of an option


class Option(NamedTuple):
    """One option of a recipe.

    Attributes:
        name: Without dashes.
        kind: "int", "float", "bool", "json" or "text".
        group: Title of its group.
        default: As the recipe sets it.
        help: One or several sentences.
        choices: The values that it takes, if they are few.
        several: Whether it takes several values.
        flag: Whether it may stand without a value.
        negative: Whether `--no_NAME` turns it off.
    """

    name: str
    kind: str
    group: str
    default: Any = None
    help: str = ""
    choices: list[str] | None = None
    several: bool = False
    flag: bool = False
    negative: bool = False


class Recipe(NamedTuple):
    """The command line of a recipe.

    Attributes:
        command: As it is typed, `trl_ext ppo`.
        description: Shown above the options.
        epilog: Shown below them.
        options: All options.
        shown: Titles of the groups that `--help` shows; `--help_all` shows all of them.
    """

    command: str
    description: str
    epilog: str
    options: list[Option]
    shown: list[str]

    def brief(self) -> "Recipe":
        """Return the recipe with nothing but names and values of the options that `--help` does not show."""
        options = [
            option if option.group in self.shown else option._replace(help="", default=None) for option in self.options
        ]
        return self._replace(options=options)


def read_recipes() -> dict[str, Recipe]:
    """Return the recipes in `OPTIONS_FILE`, by the name of their subcommand."""
    recipes = {}
    for name, values in json.loads(OPTIONS_FILE.read_text(encoding="utf-8"))["recipes"].items():
        options = [Option(**option) for option in values.pop("options")]
        recipes[name] = Recipe(options=options, **values)
    return recipes


def help_parser(recipe: Recipe, *, everything: bool = False, **options: Any) -> ArgumentParser:
    """Return a parser with a recipe's options, for its `format_help` and for completion; it parses nothing.

    Args:
        recipe: The recipe.
        everything: Whether the groups that `--help` leaves out are there too.
        options: Further arguments of the parser.
    """
    parser = ArgumentParser(
        recipe.command,
        usage="%(prog)s [--config FILE.yaml] [--option VALUE ...]",
        description=recipe.description,
        epilog=recipe.epilog,
        formatter_class=_Formatter,
        add_help=False,
        **options,
    )
    general = parser.add_argument_group(_GENERAL)
    general.add_argument("--help", "-h", action="store_true", help="Show these options and end.")
    general.add_argument("--help_all", action="store_true", help="Show all options and end.")
    general.add_argument("--config", metavar="FILE", help="YAML file of options, or the name of one in configs.")
    titles = list(dict.fromkeys([*recipe.shown, *(option.group for option in recipe.options)]))
    for title in titles if everything else recipe.shown:
        group = parser.add_argument_group(title)
        for option in (option for option in recipe.options if option.group == title):
            _add(group, option)
    return parser


def _add(group: Any, option: Option) -> None:
    names = [f"--{option.name}", *([f"--no_{option.name}"] if option.negative else [])]
    choices = ["true", "false"] if option.kind == "bool" else option.choices
    listed = "|".join(option.choices or ())
    metavar = listed if 0 < len(listed) <= _WIDEST else option.kind.upper()
    sentences = option.help
    if len(listed) > _WIDEST:
        sentences = f"{sentences.rstrip()} One of {', '.join(option.choices or ())}."
    shown = _shown(option.default)
    group.add_argument(
        *names,
        nargs="?" if option.kind == "bool" and option.flag else None,  # behind a list the shell offers no options
        metavar=f"[{metavar}]" if option.flag else f"{metavar} ..." if option.several else metavar,
        choices=choices,
        type={"int": int, "float": float}.get(option.kind),
        help=f"{sentences} (default: {shown})".strip().replace("%", "%%") if shown else sentences.replace("%", "%%"),
    )


def _shown(default: Any) -> str:
    """Return a default as a YAML file has it; nothing for none."""
    if default is None or default == "":
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return " ".join(map(_shown, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


class _Formatter(RawDescriptionHelpFormatter):
    """Each option with its type, in as many columns as the terminal has, 120 at most."""

    def __init__(self, prog: str):
        width = min(120, shutil.get_terminal_size().columns - 1)
        super().__init__(prog, max_help_position=30 if width < 100 else 38, width=width)

    def _format_action_invocation(self, action: Action) -> str:
        first, *others = action.option_strings
        return ", ".join([f"{first} {action.metavar}" if action.metavar else first, *others])

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Break paragraphs anew; of indented lines, only those that are too long."""
        lines: list[str] = []
        for line in text.splitlines():
            continues = lines and lines[-1] and line and not (lines[-1] + line).startswith(" ") and line[0] != " "
            if continues:
                lines[-1] += " " + line
            else:
                lines.append(line.rstrip())
        broken = []
        for line in lines:
            margin = " " * (len(line) - len(line.lstrip()))
            parts = self._split_lines(line, width - len(margin)) if len(line) > width else [line.strip()]
            broken += [f"{indent}{margin}{part}".rstrip() for part in parts]
        return "\n".join(broken)
