# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The recipes' command lines: layered defaults, help in groups, errors of one line."""

import os
import re
import shlex
import signal
import sys
import traceback
from argparse import Action, ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig, TrlParser

from trl_ext.arguments import check_output_dir
from trl_ext.checkpoint import newest_whole
from trl_ext.config import PPOConfig
from trl_ext.critic_modes import learns_fast
from trl_ext.messages.advice import advice
from trl_ext.messages.notes import plain_warnings, quiet_libraries
from trl_ext.messages.redaction import redacted_text
from trl_ext.messages.refusal import refuse

from .bars import without_bars
from .config_files import LAYERS, find_config, without_config
from .help import COMMON, COMMON_TITLE, Option, Recipe, help_parser
from .interrupts import Interrupted
from .places import PACKAGE, RECIPES
from .values import kind_of, parse_node, parse_text, read_mapping

__all__ = ["RecipeParser", "check_launch", "check_output_dir", "newest_checkpoint", "run"]

# What to type for an argument of PPOTrainer; the reward has an option of its own in each recipe.
_FOR_ARGUMENT = {
    "model": "use `model_name_or_path`.",
    "peft_config": "use `use_peft`.",
    "quantization_config": "use `load_in_4bit`.",
    "processing_class": "leave it out, a model brings its own tokenizer.",
    "reward_processing_classes": "leave it out, a model brings its own tokenizer.",
    "optimizers": "use `optim`, `learning_rate` and `lr_scheduler_type`.",
    "train_dataset": "use `dataset_name` and `prompt_column`.",
    "torch_dtype": "use `dtype`.",
    "judge": "use `judge_model`.",
    "args": "give the settings themselves, or a file of them with `--config`.",
}
_REWARDS = ("toxicity_model", "reward_model", "reward")  # the option for the reward, in each recipe
_FOR_REWARD = {
    "toxicity_model": "use `reward` with toxicity:MODEL.",
    "reward_model": "use `reward` with preference:MODEL.",
    "reward_model_path": "use `reward` with preference:MODEL.",
    "reward_function": "use `reward` with FILE.py:FUNCTION.",
    "weights": "use `reward_weights`.",
}
# A quantized base is trained through adapters alone.
_NEEDS_LORA = ("use_peft", "load_in_4bit", "load_in_8bit")


class RecipeParser(TrlParser):
    """TRL's parser with the recipe's defaults below the YAML file, and help that can be read.

    Values by their strength, from weak to strong: the dataclasses' defaults, `default.yaml`, without a model's name
    `embedded.yaml`, with a critic that is a whole model or a trained one `separate_critic.yaml`, with LoRA `lora.yaml`,
    the file of `--config`, the command line.

    Args:
        groups: Dataclasses by title in `--help`; their fields become options, beside those of `PPOConfig` and TRL's
            `ModelConfig`.
        configs: Folder with the recipe's own defaults, `default.yaml`; for `--use_peft`, `--load_in_4bit` and
            `--load_in_8bit`, `lora.yaml`; for critics that are a whole model or trained ones `separate_critic.yaml`;
            and, where the embedded example wants its own, `embedded.yaml`.
        description: Shown above the options.
        epilog: Shown below them, for instance examples.
        command: The command as a user types it, such as "trl_ext ppo".

    Raises:
        ValueError: for an unknown key or a wrong value in one of the recipe's own files.
    """

    def __init__(
        self,
        groups: Mapping[str, Any],
        configs: Path,
        description: str,
        epilog: str,
        command: str,
    ):
        embedded = configs / "embedded.yaml"
        files = "default.yaml, with LoRA also lora.yaml, with a whole model or a trained critic separate_critic.yaml"
        files += ", without a model embedded.yaml" * embedded.exists()
        description = f"{description.strip()}\n\nDefaults, in {'/'.join(configs.parts[-3:])}: {files};\n"
        description += (
            "--config FILE.yaml, or --config NAME of a file in configs, and then the command line override them."
        )
        parts = (*groups.values(), PPOConfig, ModelConfig)
        super().__init__(parts, prog=command, description=description, epilog=epilog, allow_abbrev=False)
        trainer_fields = [f.name for f in fields(TrainingArguments) if f.init]
        titles = {
            **{title: [f.name for f in fields(group)] for title, group in groups.items()},
            COMMON_TITLE: list(COMMON),
            "PPO": [f.name for f in fields(PPOConfig) if f.init and f.name not in trainer_fields],
            "model, LoRA and quantization": [f.name for f in fields(ModelConfig)],
            "training (transformers.TrainingArguments)": trainer_fields,
        }
        self._titles: dict[str, str] = {}
        for title, names in titles.items():
            self._titles |= {name: title for name in names if name not in self._titles}
        self._shown = [*groups, COMMON_TITLE, "PPO"]
        self._hints = {name: hint for part in self.dataclass_types for name, hint in get_type_hints(part).items()}
        self._options = {action.dest: action for action in reversed(self._actions)}
        self._allow_bare_truth_values()
        self._layers = [self._read(configs / f"{name}.yaml") for name in LAYERS]

    def _allow_bare_truth_values(self) -> None:
        """Let `--bf16` alone mean true, although transformers asks fields without a truth value by default for one."""
        for name, action in self._options.items():
            if action.nargs is None and self._hints.get(name) == bool | None:
                action.nargs, action.const = "?", True

    def describe(self) -> Recipe:
        """Return the options with the recipe's defaults, as data."""
        twins = {action.dest for action in self._actions if "--no_" in action.option_strings[0]}
        options = []
        for name, title in self._titles.items():
            action = self._options[name]
            default = self._layers[0].get(name, action.default)
            options.append(
                Option(
                    name,
                    kind_of(action, self._hints[name]),
                    title,
                    default=default.value if isinstance(default, Enum) else default,
                    help=COMMON.get(name) or action.help or "",
                    choices=None if action.choices is None else [str(choice) for choice in action.choices],
                    several=action.nargs == "+",
                    flag=action.nargs == "?",
                    negative=name in twins,
                )
            )
        return Recipe(self.prog, self.description or "", self.epilog or "", options, self._shown)

    def format_help(self) -> str:
        """Return the text of `--help`."""
        return help_parser(self.describe()).format_help()

    def parse_recipe(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Parse a command line; `--config` may name a YAML file.

        Raises:
            SystemExit: with status 2, after one line that names the fault.
        """
        try:
            return self.parse(sys.argv[1:] if argv is None else argv)
        except (ValueError, TypeError, OSError) as error:
            fail(error)

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """Parse a command line.

        Raises:
            ValueError: in one sentence, for an option or a value that there is not, here or in the YAML file.
        """
        if "--help_all" in argv:
            print(help_parser(self.describe(), everything=True).format_help())
            raise SystemExit(0)
        arguments, given_config = without_config(argv)
        arguments = self._joined(arguments)
        file = None if given_config is None else find_config(given_config)
        own = {} if file is None else self._read(file)
        environment = own.pop("env", {})
        default, embedded, separate_critic, lora = self._layers
        self.set_defaults_with_config(**default | own)
        given, unknown = self.parse_known_args(arguments)
        if unknown:
            raise ValueError(self._unknown("option", unknown[0]))
        without_model = embedded if given.model_name_or_path is None else {}
        with_critic = {} if learns_fast(given.critic) else separate_critic
        with_lora = lora if any(getattr(given, name) for name in _NEEDS_LORA) else {}
        self.set_defaults_with_config(**default | without_model | with_critic | with_lora | own)
        os.environ.update(environment)
        try:
            parsed = self.parse_args_into_dataclasses(arguments, look_for_args_file=False)
            _check_trackers(next(part.report_to for part in parsed if isinstance(part, PPOConfig)))
            return parsed
        except ValueError as error:
            typed = {_option(argument) for argument in arguments if argument.startswith("--")}
            named = re.findall(r"`(\w+)(?:=[^`]*)?`", str(error))
            if any(name in own and name not in typed for name in named):
                raise ValueError(f"{str(error).rstrip('.')} (in '{file}').") from error
            raise ValueError(self._in_options(str(error), "--")) from error

    def _joined(self, arguments: Sequence[str]) -> list[str]:
        """Return the command line with the values of a list's option together, where it is given several times."""
        lists = {name for name, action in self._options.items() if action.nargs == "+"}
        rest: list[str] = []
        values: dict[str, list[str]] = {}
        taken: list[str] = rest
        for argument in arguments:
            name = _option(argument)
            if argument.startswith("--") and name in lists:
                taken = values.setdefault(name, [])
                taken += argument.split("=", 1)[1:]
            elif argument.startswith("--"):
                taken = rest
                rest.append(argument)
            else:
                taken.append(argument)
        return rest + [word for name, words in values.items() for word in (f"--{name}", *words)]

    def _get_value(self, action: Action, arg_string: str) -> Any:
        try:
            return parse_text(arg_string, action, self._hints.get(action.dest), f"`--{action.dest}`")
        except ValueError as error:
            raise ArgumentError(None, str(error)) from None

    def _check_value(self, action: Action, value: Any) -> None:
        """Accept every value: `_get_value` has compared it with the choices."""

    def error(self, message: str) -> NoReturn:
        """Raise a message of argparse, without the usage in front.

        Raises:
            ValueError: always.
        """
        if of_option := re.match(r"argument (--\w+)\S*: (.*)", message):
            message = f"`{of_option[1]}` {'needs a' if 'expected' in of_option[2] else 'takes no'} value."
        raise ValueError(message)

    def _read(self, path: Path) -> dict[str, Any]:
        """Return the options in a YAML file, and its `env`: variables of the environment."""
        values: dict[str, Any] = {}
        for key, node in read_mapping(path).items():
            if key == "env":
                values[key] = _read_environment(node, path)
            elif key not in self._hints or key not in self._options:
                raise ValueError(f"{self._unknown('key', key).rstrip('.')} (in '{path}').")
            else:
                values[key] = parse_node(node, self._options[key], self._hints[key], f"`{key}` in '{path}'")
        return values

    def _unknown(self, kind: str, given: str) -> str:
        if kind == "option" and Path(given).suffix in (".yaml", ".yml") and not given.startswith("-"):
            return f"`{given}` stands alone; give a file of settings as `--config {given}`."
        if kind == "option" and not given.startswith(("-", "\u2013", "\u2014")):
            return f"`{given}` belongs to no option; options begin with `--`, and values of several words are quoted."
        name, dashes = _option(given), "--" * (kind == "option")
        if name.lower() in self._options:
            answer = f"did you mean `{name.lower()}`?"
        else:
            answer = self._advice(name) or "`--help` lists all of them."
        return f"Unknown {kind} `{given}`: {self._in_options(answer, dashes)}"

    def _advice(self, name: str) -> str:
        """Return the advice for a name of another trainer, or of Python, in the names of options."""
        reward = next(option for option in _REWARDS if option in self._options)
        for_argument = _FOR_ARGUMENT | {"reward_funcs": f"use `{reward}`."}
        if reward == "reward":
            for_argument |= _FOR_REWARD
        text = for_argument.get(name) or advice(name, self._options)
        if not text.startswith(("leave", "did")):
            quoted = re.findall(r"`(\w+)", text)
            text = next((for_argument[word] for word in quoted if word in for_argument), text)
        return text.replace(" of PPOConfig", "")

    def _in_options(self, text: str, dashes: str) -> str:
        text = in_options(text, dashes)
        return re.sub(r"`(\w+)((?:=[^`]*)?)`", lambda m: f"`{dashes * (m[1] in self._options)}{m[1]}{m[2]}`", text)


def in_options(text: str, dashes: str = "--") -> str:
    """Return a message of the trainer with the names of options in the place of arguments."""
    for name, option in {
        "model": "model_name_or_path",
        "train_dataset": "dataset_name",
        "output_dir": "output_dir",
    }.items():
        text = text.replace(f"`{name}`", f"`{dashes}{option}`")
    for name, option in {"peft_config": "use_peft", "quantization_config": "load_in_4bit"}.items():
        text = re.sub(rf"`{name}(=[^`]*)?`", f"`{dashes}{option}`", text)
    return text


def _check_trackers(names: Sequence[str]) -> None:
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in installed:
            raise ValueError(
                f"`report_to` {name!r} is no tracker that is installed here ({', '.join(installed) or 'none is'}); "
                "install it, or take 'none'."
            )


def _option(argument: str) -> str:
    """Return the name of an option without dashes, those included that a word processor makes of two hyphens."""
    return argument.lstrip("-\u2013\u2014").split("=")[0].replace("-", "_")


def _read_environment(node: yaml.Node, path: Path) -> dict[str, str]:
    if isinstance(node, yaml.MappingNode) and all(isinstance(value, yaml.ScalarNode) for _, value in node.value):
        return {key.value: value.value for key, value in node.value}
    raise ValueError(f"`env` in '{path}' must be a mapping of variables to texts.")


def check_launch(args: TrainingArguments) -> None:
    """Refuse a launch whose processes do not know of each other: each would train alone into the same folder.

    Raises:
        ValueError: if not.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != args.world_size:
        raise ValueError(
            f"{launched} processes were launched, but the Trainer sees {args.world_size}; without GPUs add `--use_cpu`."
        )


def newest_checkpoint(given: str | None, output_dir: Path) -> str | None:
    """Find the checkpoint that `--resume_from_checkpoint` means: a folder, or with `true` the newest whole one.

    Raises:
        ValueError: if there is none.
    """
    if given is None or given.lower() == "false":
        return None
    if given.lower() == "true":
        newest = newest_whole(output_dir)
        if newest is None:
            raise ValueError(
                f"There is no whole checkpoint in '{output_dir}'; leave `--resume_from_checkpoint` out to start anew."
            )
        return str(newest)
    if not Path(given).expanduser().is_dir():
        raise ValueError(f"`--resume_from_checkpoint {given}` does not exist; give a checkpoint's folder or 'true'.")
    return str(Path(given).expanduser())


def run(main: Callable[[], None]) -> None:
    """Call `main`; end with one line and status 2 for an error that the user can mend, with 130 after Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the script has switched it off for its imports
    quiet_libraries()
    if not sys.stderr.isatty():
        without_bars()
    try:
        with plain_warnings():  # also of a script that was started without `trl_ext`
            main()
    except KeyboardInterrupt as stop:
        interrupted(stop)
    except (ValueError, TypeError, OSError, ImportError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        # An OSError is a file or name that is not there. The other two may be bugs, unless this project raised them.
        own = any(raised_in.is_relative_to(folder) for folder in (PACKAGE, RECIPES))
        if not own and not isinstance(error, OSError):
            raise
        fail(error)


def fail(error: Exception) -> NoReturn:
    """Print an error as one line, in the words of the command line, and exit with status 2."""
    refuse(in_options(str(error)))


def interrupted(stop: KeyboardInterrupt) -> NoReturn:
    """Print where a run was interrupted and the command that goes on, and exit with the status of Ctrl-C."""
    known = stop if isinstance(stop, Interrupted) else Interrupted("before anything was trained")
    if int(os.environ.get("RANK", 0)) == 0:
        saved = "; a checkpoint of this step is written" * known.saved
        print(f"interrupted {known.where}{saved}. To go on: {_command(known.resume)}", file=sys.stderr)
    raise SystemExit(130)


def _command(resume: bool) -> str:
    """Return the command that started this process, or the command that resumes its run; secrets of a URL hidden."""
    words = [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
    if resume:
        places = [i for i, word in enumerate(words) if _option(word) == "resume_from_checkpoint"]
        for place in reversed(places):
            del words[place : place + (1 if "=" in words[place] else 2)]
        words += ["--resume_from_checkpoint", "true"]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return "the same command" + " with `--resume_from_checkpoint true`" * resume
    return shlex.join(map(redacted_text, words))
