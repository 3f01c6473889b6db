# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The choices of `critic`, in one table for options, checks, planner and README. Nothing heavy is imported here.

To add one, write its line here and its trunk in `trl_ext.actor_critic.loading.load_critic`: every choice but "head" and
"adapter" is a model with a trunk of its own.
"""

import json
from pathlib import Path
from typing import NamedTuple

CRITIC_FOLDER = "critic"  # beside a policy, in the folder of a run
CRITIC_RECORD = "critic_config.json"


class CriticMode(NamedTuple):
    """A choice of `critic`.

    Attributes:
        help: Description for option helps.
        lora: Whether the policy must have LoRA (True) or must not (False); None where either goes.
        refusal: Message for a policy that does not fit.
    """

    help: str
    lora: bool | None = None
    refusal: str = ""


# The name of a model is a choice too.
CRITIC_MODES = {
    "head": CriticMode("a value head on the policy's own trunk"),
    "adapter": CriticMode(
        "a second LoRA adapter and value head on the same base",
        lora=True,
        refusal="`critic='adapter'` is a LoRA adapter beside the policy's own: it needs `peft_config`.",
    ),
    "copy": CriticMode(
        "a separate copy of the policy",
        lora=False,
        refusal="`critic='copy'` copies a whole model; with adapters use `critic='adapter'` or 'head'.",
    ),
}


def saved_critic_folder(name: str) -> Path | None:
    """Return the folder with the critic that an earlier run saved, which is `name` or its subfolder `critic`.

    None where `name` is no folder of a run.
    """
    folder = Path(name).expanduser()
    places = (folder, folder / CRITIC_FOLDER)
    return next((place for place in places if (place / CRITIC_RECORD).is_file()), None)


def learns_fast(critic: str) -> bool:
    """Return whether a choice of `critic` needs the learning rate of a value head: a head, or a new adapter.

    At that rate a whole model, or an adapter that has been trained before, forgets what it knows.
    """
    folder = saved_critic_folder(critic)
    if folder is None:
        return critic in ("head", "adapter")
    try:
        return json.loads((folder / CRITIC_RECORD).read_text(encoding="utf-8")).get("critic") == "head"
    except (OSError, ValueError, AttributeError):
        return False  # what is wrong with the record is said where the critic is loaded
