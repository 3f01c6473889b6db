# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The configuration that was in force, and what of it differs from the defaults."""

from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from enum import Enum
from pathlib import Path
from typing import Any

from trl_ext.config import PPOConfig
from trl_ext.messages.places import without_places
from trl_ext.messages.redaction import redacted

__all__ = ["plain", "settings_in_force"]

# Set by the machine, the library or the Trainer itself and not by the user.
_NOT_CHOSEN = (
    *("accelerator_config", "activation_checkpointing", "bf16", "dataloader_pin_memory", "disable_tqdm", "fp16"),
    *("local_rank", "logging_dir"),
)
_EMPTY: tuple[Any, ...] = (None, "", "none", [], {})


def settings_in_force(args: PPOConfig, options: Sequence[Any] = ()) -> tuple[dict[str, Any], list[str]]:
    """Return every setting by name, and the names of those that differ from the defaults of their dataclass.

    Secrets are hidden, and absolute paths reduced to what does not name a folder of the machine.

    Args:
        args: Configuration of the trainer.
        options: Dataclasses of a script's own options and of the model's.
    """
    settings: dict[str, Any] = {}
    changed: list[str] = []
    for part in (*options, args):
        values = args.to_dict() if part is args else asdict(part)
        for field in fields(part):
            if field.name not in values:
                continue
            # `to_dict` of transformers shows <HUB_TOKEN> in place of any token, also where there is none.
            own = getattr(part, field.name)
            value = settings[field.name] = None if own is None else plain(values[field.name])
            default = plain(_default(field))
            same = value == default or (value in _EMPTY and default in _EMPTY)
            if not same and not (part is args and field.name in _NOT_CHOSEN):
                changed.append(field.name)
    folder = Path(str(args.output_dir))
    shown = without_places(redacted(settings), folder)
    if "output_dir" in shown:
        shown["output_dir"] = folder.name
    return shown, list(dict.fromkeys(changed))


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def plain(value: Any) -> Any:
    """Return a value as JSON has it: enumerations by their values, tuples as lists, other objects as text."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
