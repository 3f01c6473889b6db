# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What the recipes' command lines share: layered defaults, help in groups, and errors of one line."""

import difflib
import os
import shutil
import sys
import traceback
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser

from trl_ext.config import PPOConfig

__all__ = ["RecipeParser", "check_launch", "check_output_dir", "newest_checkpoint", "run"]

ROOT = Path(__file__).resolve().parent.parent
# A quantized base is trained through adapters alone.
_NEEDS_LORA = ("use_peft", "load_in_4bit", "load_in_8bit")


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Each option under one name, with its default where it has one; description and examples as they are written."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=min(120, shutil.get_terminal_size().columns))

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_action_invocation(self, action: Action) -> str:
        # the parser also takes every name with hyphens, which doubles the length of the list
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        value = "" if action.nargs == 0 else " " + self._format_args(action, "VALUE")
        return ", ".join(names) + (value if len(value) < 60 else " VALUE")


class RecipeParser(TrlParser):
    """
    TRL's parser with the recipe's defaults below the YAML file, and help that can be read.

    From weakest to strongest: the dataclasses' defaults, `default.yaml`, without a model's name `embedded.yaml`, with
    LoRA `lora.yaml`, the file of `--config`, the command line.

    Args:
        recipe_type: Dataclass whose fields become options, beside those of `PPOConfig` and TRL's `ModelConfig`.
        title: Of its group of options in `--help`.
        configs: Folder with the recipe's own defaults, `default.yaml`; for `--use_peft`, `--load_in_4bit` and
            `--load_in_8bit`, `lora.yaml`; and, where the embedded example wants its own, `embedded.yaml`.
        description: Shown above the options.
        epilog: Shown below them, for instance examples.

    Raises:
        ValueError: for an unknown key in `defaults_file`.
    """

    def __init__(
        self,
        recipe_type: Any,
        title: str,
        configs: Path,
        description: str,
        epilog: str,
    ):
        embedded = configs / "embedded.yaml"
        files = "default.yaml, with LoRA also lora.yaml" + ", without a model embedded.yaml" * embedded.exists()
        description = f"{description.strip()}\n\nDefaults, in {configs.relative_to(ROOT)}: {files};\n"
        description += "--config FILE.yaml and then the command line override them."
        super().__init__(
            (recipe_type, PPOConfig, ModelConfig),
            usage="%(prog)s [--config FILE.yaml] [--option VALUE ...]",
            description=description,
            epilog=epilog,
            formatter_class=_HelpFormatter,
        )
        trainer_fields = [f.name for f in fields(TrainingArguments) if f.init]
        self._group(
            {
                title: [f.name for f in fields(recipe_type)],
                "PPO": [f.name for f in fields(PPOConfig) if f.init and f.name not in trainer_fields],
                "model, LoRA and quantization": [f.name for f in fields(ModelConfig)],
                "training (transformers.TrainingArguments)": trainer_fields,
            }
        )
        self.set_defaults_with_config(**self._read(configs / "default.yaml"))
        self._lora_defaults = self._read(configs / "lora.yaml")
        self._embedded_defaults = self._read(embedded) if embedded.exists() else {}

    def parse_recipe(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """
        Parse a command line; `--config` may name a YAML file.

        Raises:
            SystemExit: with status 2, after one line that says what is wrong.
        """
        arguments: list[str] = []
        for argument in sys.argv[1:] if argv is None else argv:
            # TRL's parser knows only the form with a space
            arguments += argument.split("=", 1) if argument.startswith("--config=") else [argument]
        try:
            if arguments.count("--config") == 1 and arguments[-1] != "--config":
                self._read(Path(arguments[arguments.index("--config") + 1]))
            elif "--config" in arguments:
                raise ValueError("`--config` needs the path of a YAML file, once.")
            parsed = self._parse(arguments)
            if all(getattr(part, "model_name_or_path", None) is None for part in parsed):
                self.set_defaults_with_config(**self._embedded_defaults)
                parsed = self._parse(arguments)
            if any(getattr(part, name, False) for part in parsed for name in _NEEDS_LORA):
                self.set_defaults_with_config(**self._lora_defaults)
                parsed = self._parse(arguments)
        except (ValueError, TypeError, OSError) as error:
            fail(error)
        return tuple(parsed)

    def _parse(self, arguments: list[str]) -> list[Any]:
        *parsed, unknown = self.parse_args_and_config(arguments, return_remaining_strings=True)
        if unknown:
            raise ValueError(self._unknown("option", unknown[0]))
        return parsed

    def _group(self, groups: Mapping[str, Sequence[str]]) -> None:
        options = {action.dest: [] for action in self._actions}  # type: dict[str, list[Any]]
        for action in self._actions:
            options[action.dest].append(action)
        for title, names in groups.items():
            group = self.add_argument_group(title)
            for action in (action for name in names for action in options[name]):
                self._optionals._group_actions.remove(action)
                group._group_actions.append(action)

    def _read(self, path: Path) -> dict[str, Any]:
        """The mapping in a YAML file, all of whose keys are options."""
        try:
            values = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"The file '{path}' is not valid YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(values, dict):
            raise ValueError(f"The file '{path}' must contain a YAML mapping of options to values.")
        known = {action.dest for action in self._actions} | {"env"}
        for key in values:
            if key not in known:
                raise ValueError(f"{self._unknown('key', str(key))[:-1]} (in '{path}').")
        return values

    def _unknown(self, kind: str, given: str) -> str:
        name = given.lstrip("-").split("=")[0].replace("-", "_")
        matches = difflib.get_close_matches(name, [action.dest for action in self._actions])
        names = list(dict.fromkeys(f"`{match}`" for match in matches))
        advice = f"did you mean {' or '.join(names)}?" if names else "`--help` lists all of them."
        return f"Unknown {kind} `{given}`: {advice}"


def check_launch(args: TrainingArguments) -> None:
    """
    See that the processes of a launch know of each other; otherwise each would train alone into the same folder.

    Raises:
        ValueError: if not.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != args.world_size:
        raise ValueError(
            f"{launched} processes were launched, but the Trainer sees {args.world_size}; without GPUs add `--use_cpu`."
        )


def check_output_dir(path: str) -> Path:
    """
    Make the output directory and see that files can be written into it, before any time is spent.

    Raises:
        ValueError: if not.
    """
    directory = Path(path).expanduser().resolve()
    probe = directory / f".write-test-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"The output directory '{path}' cannot be written ({error.strerror}); choose another with `--output_dir`."
        ) from error
    return directory


def newest_checkpoint(given: str | None, output_dir: Path) -> str | bool | None:
    """
    What `--resume_from_checkpoint` means to the trainer: a folder, or `true` for the newest one in `output_dir`.

    Raises:
        ValueError: if there is none.
    """
    if given is None or given.lower() == "false":
        return None
    if given.lower() == "true":
        if get_last_checkpoint(str(output_dir)) is None:
            raise ValueError(
                f"There is no checkpoint in '{output_dir}'; leave `--resume_from_checkpoint` out to start anew."
            )
        return True
    if not Path(given).is_dir():
        raise ValueError(f"`--resume_from_checkpoint {given}` does not exist; give a checkpoint's folder or 'true'.")
    return given


def run(main: Callable[[], None]) -> None:
    """Call `main`, and end with one line and status 2 where it raises what the user can mend."""
    try:
        main()
    except (ValueError, TypeError, OSError, ImportError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        # An OSError is a file or name that is not there. The other two may be bugs, unless this project raised them.
        own = any(raised_in.is_relative_to(ROOT / package) for package in ("trl_ext", "recipes", "eval"))
        if not own and not isinstance(error, OSError):
            raise
        fail(error)


def fail(error: Exception) -> NoReturn:
    """Print an error as one line and exit with status 2."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    raise SystemExit(2)
