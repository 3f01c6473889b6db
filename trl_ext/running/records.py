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
from trl_ext.files import write_json
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
_PLACES = ("_path", "_name", "_model", "_dataset", "_dir", "reward")


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
    """Save the options of a recipe; names of files and folders become absolute, secrets are hidden.

    Args:
        folder: Output directory of the run.
        recipe: Name of the recipe's command.
        args: Configuration of the trainer.
        options: Dataclasses of the recipe's own options and of the model's, with the names that it has resolved.
        model: Folder of the trained policy in `folder`.
    """
    parts = {type(part).__name__: _absolute(plain(asdict(part))) for part in options}
    own = {name: value for name, value in args.to_dict().items() if name in _own()}
    write_json(folder / RECORD, {"recipe": recipe, "model": model, "options": redacted(parts), "args": own})


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what `write_record` saved; None where there is none.

    Raises:
        ValueError: when it cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert {"recipe", "model", "options", "args"} <= record.keys()
    except (OSError, ValueError, AssertionError, AttributeError):
        raise ValueError(f"'{path}' cannot be read as a record of a recipe; move it away.") from None
    return record


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


def _absolute(value: Any, key: str = "") -> Any:
    """Return names of present files and folders with their whole path, also in FILE.py:function and KIND:MODEL.

    Only under the options that name some: `--stages eval` is no folder, whatever the current folder holds.
    """
    if isinstance(value, dict):
        return {name: _absolute(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_absolute(entry, key) for entry in value]
    if not isinstance(value, str) or not value.strip() or not key.endswith(_PLACES):
        return value
    if Path(value).expanduser().exists():
        return str(Path(value).expanduser().resolve())
    head, colon, tail = value.partition(":")
    if colon and head.endswith(".py") and Path(head).is_file():
        return f"{Path(head).resolve()}:{tail}"
    return f"{head}:{Path(tail).resolve()}" if colon and tail and Path(tail).is_dir() else value
