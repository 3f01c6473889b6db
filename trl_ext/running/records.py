# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The options that a recipe ran with, saved in its output directory, so that the run can be measured again."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import TrainingArguments

from trl_ext.config import PPOConfig
from trl_ext.critic_modes import CRITIC_MODES
from trl_ext.files import write_json
from trl_ext.folders import found_again, portable
from trl_ext.messages.redaction import redacted
from trl_ext.reports.settings import plain
from trl_ext.trainer import PPOTrainer

__all__ = ["RECORD", "Reopened", "read_record", "rebuilt", "rebuilt_config", "write_record"]

RECORD = "recipe.json"
Options = TypeVar("Options")

# Of the Trainer's settings those that decide what is sampled, how a batch is scored, and in which precision.
_TRAINER = (
    *("seed", "data_seed", "bf16", "fp16", "use_cpu", "optim", "gradient_checkpointing"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
)
# Ends of the options that may name a file or folder.
_PLACES = ("_path", "_name", "_model", "_dataset", "_dir", "reward", "reward_adapters", "critic")


class Reopened(NamedTuple):
    """A run as it was before training, for measurements.

    Attributes:
        trainer: The trainer, with the initial policy.
        columns: The evaluation prompts, and the columns that rewards and judge read.
        quality: Returns the judge's numbers for samples and their columns; None without a judge.
    """

    trainer: PPOTrainer
    columns: Mapping[str, list[Any]]
    quality: Callable[..., Mapping[str, Any]] | None


def write_record(folder: Path, recipe: str, args: PPOConfig, options: Sequence[Any], *, model: str = ".") -> None:
    """Save the options of a recipe, secrets hidden, with the places of files and folders beside the run's.

    Args:
        folder: Output directory of the run.
        recipe: Name of the recipe's command.
        args: Configuration of the trainer.
        options: Dataclasses of the recipe's own options and of the model's, with the names that it has resolved.
        model: Folder of the trained policy in `folder`.
    """
    places: dict[str, str] = {}

    def noted(name: str) -> str:
        if not Path(name).expanduser().exists():
            return name
        given, place = portable(name, folder)
        places[given] = place
        return given

    parts = {type(part).__name__: _with_places(plain(asdict(part)), noted) for part in options}
    own = {name: _with_places(value, noted, name) for name, value in args.to_dict().items() if name in _own()}
    content = {"recipe": recipe, "model": model, "options": redacted(parts), "args": own, "places": places}
    write_json(folder / RECORD, content)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what `write_record` saved, with whole paths of the files and folders that are found; None without any.

    Raises:
        ValueError: when it cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert {"recipe", "model", "options", "args"} <= record.keys()
        places = dict(record.get("places") or {})  # an earlier version wrote whole paths alone
    except (OSError, ValueError, TypeError, AssertionError, AttributeError):
        raise ValueError(f"'{path}' cannot be read as a record of a recipe; move it away.") from None

    def found(name: str) -> str:
        return found_again(name, places[name], folder) if name in places else name

    return record | {part: _with_places(record[part], found) for part in ("options", "args")}


def training_rewards(folder: Path) -> list[str]:
    """Return the names of the rewards that a run's record names, as `--reward` takes them; none without a record."""
    record = read_record(folder)
    if record is None:
        return []
    options = {name: value for part in record["options"].values() for name, value in part.items()}
    classifier = options.get("toxicity_model")
    own = [str(folder / "reward")] if record["recipe"] == "instruct" else []
    return [*(options.get("reward") or []), *([f"toxicity:{classifier}"] if classifier else []), *own]


def rebuilt(kind: type[Options], record: Mapping[str, Any]) -> Options:
    """Return the options of one dataclass as they were recorded; its defaults for those of a later version."""
    saved = record["options"].get(kind.__name__, {})
    return kind(**{field.name: saved[field.name] for field in fields(kind) if field.init and field.name in saved})  # type: ignore[arg-type]


def rebuilt_config(record: Mapping[str, Any], output_dir: str, **changes: Any) -> PPOConfig:
    """Return a configuration that samples and scores as the run did, saves nothing and reports to nobody.

    Args:
        record: As `read_record` returned it.
        output_dir: Folder that the trainer may use.
        changes: Other values; None leaves one as it was.
    """
    saved = record["args"] | {name: value for name, value in changes.items() if value is not None}
    known = {name: value for name, value in saved.items() if name in _own()}
    still: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run has told its user
        return PPOConfig(output_dir=output_dir, **known, **still)


def _own() -> set[str]:
    inherited = {field.name for field in fields(TrainingArguments)}
    return {field.name for field in fields(PPOConfig) if field.init and field.name not in inherited} | set(_TRAINER)


def _with_places(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """Return a copy of options in which the names of files and folders are changed, also in FILE.py:function.

    Only under the options that name some: `--stages eval` is no folder, whatever the current folder holds.

    Args:
        value: Options by name, or the value of one.
        change: Returns the new name for a whole value, or for a part of FILE.py:function or KIND:MODEL; the same name
            where it is none of a file or folder.
        key: Name of the option.
    """
    if isinstance(value, dict):
        return {name: _with_places(entry, change, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_with_places(entry, change, key) for entry in value]
    if not isinstance(value, str) or not value.strip() or not key.endswith(_PLACES) or value in CRITIC_MODES:
        return value
    if (changed := change(value)) != value:
        return changed
    head, colon, tail = value.partition(":")
    if colon and head.endswith(".py"):
        return f"{change(head)}:{tail}"
    return f"{head}:{change(tail)}" if head in ("toxicity", "preference") and tail else value
