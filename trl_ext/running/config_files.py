# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Files of settings: those that a recipe reads as its defaults, and the one that `--config` names."""

from collections.abc import Sequence
from pathlib import Path

from trl_ext.messages.suggestion import suggestion

from .places import RECIPES

LAYERS = ("default", "embedded", "separate_critic", "lora")  # files of defaults in each recipe's folder


def find_config(name: str) -> Path:
    """Find the YAML file of `--config`.

    Args:
        name: Path of a file, or the name of one of the recipes' own, with or without folder and suffix:
            `cards/8gb_llama_3b`.

    Raises:
        ValueError: if there is no such file, or the name stands for several.
    """
    given = Path(name).expanduser()
    if given.exists():
        return given
    configs = RECIPES / "configs"
    # `accelerate launch` reads those in the folder of its name.
    files = [path for path in sorted(configs.rglob("*.yaml")) if path.stem not in LAYERS]
    files = [path for path in files if path.parent.name != "accelerate"]
    known = {path.relative_to(configs).with_suffix("").as_posix(): path for path in files}
    short = name.removesuffix(".yaml")
    found = [path for place, path in known.items() if f"/{place}".endswith(f"/{short}")]
    if len(found) == 1:
        return found[0]
    answer = suggestion(short, known) or f"known are {', '.join(known)}."
    raise ValueError(f"`--config {name}` is no file, and no configuration of the recipes has this name: {answer}")


def without_config(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the command line without `--config FILE` or `--config=FILE`, and the file."""
    rest: list[str] = []
    files: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config":
            files.append(next(remaining, ""))
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if len(files) > 1 or "" in files:
        raise ValueError("`--config` needs the path of a YAML file, once.")
    return rest, files[0] if files else None
