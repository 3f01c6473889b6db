# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Write the file of the recipes' options, from which `--help` and completion answer: for developers.

python -m trl_ext.commands.options_file
"""

import json
import runpy
from importlib.metadata import version
from typing import Any

from trl_ext.running.help import OPTIONS_FILE, Option, Recipe

from .scripts import SCRIPTS, script_of

__all__ = ["describe_scripts", "write"]

LIBRARIES = ("transformers", "trl")
_UNSET = Option("", "", "")._asdict()


def describe_scripts() -> dict[str, Recipe]:
    """Return the recipes as they are with the libraries that are installed, by subcommand; imports all of them."""
    return {name: runpy.run_path(str(script_of(name)))["make_parser"]().describe() for name in SCRIPTS}


def write() -> None:
    """Write `OPTIONS_FILE`, one option a line."""
    parts = []
    for name, recipe in describe_scripts().items():
        options = [f"   {json.dumps(_without_defaults(option))}" for option in recipe.brief().options]
        about = [
            f"{json.dumps(key)}: {json.dumps(value)}" for key, value in recipe._asdict().items() if key != "options"
        ]
        lines = ",\n".join(options)
        parts.append(f' "{name}": {{\n  ' + ",\n  ".join(about) + f',\n  "options": [\n{lines}\n  ]}}')
    made_with = json.dumps({library: version(library) for library in LIBRARIES})
    text = f'{{"made_with": {made_with},\n"recipes": {{\n' + ",\n".join(parts) + "\n}}\n"
    OPTIONS_FILE.write_text(text, encoding="utf-8")


def _without_defaults(option: Option) -> dict[str, Any]:
    values = option._asdict()
    return {key: value for key, value in values.items() if key != "default" and value != _UNSET[key]} | (
        {} if option.default is None else {"default": option.default}
    )


if __name__ == "__main__":
    write()
    print(OPTIONS_FILE)
