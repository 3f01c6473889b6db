# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The command that compares two models: check, tell, measure, print and write."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from trl_ext.files import write_json
from trl_ext.messages.notes import tell, telling_warnings
from trl_ext.messages.redaction import redacted
from trl_ext.running.bars import without_bars

from .measuring import measure
from .request import Request, prepare
from .showing import as_json, print_comparison

__all__ = ["run"]


def run(*, show: int = 0, output: str | None = None, **options: Any) -> None:
    """Compare two models, print the result, and write it as JSON.

    Args:
        show: How many samples are printed side by side.
        output: File for the JSON; None for none.
        options: Those of the command line; None where one is not given.

    Raises:
        ValueError, TypeError, RuntimeError, ImportError, OSError: for anything that cannot be used.
    """
    if show < 0:
        raise ValueError(f"--show is {show}; it must be 0 or more.")
    path = None if output is None else _writable(Path(output))
    given = dict(options)
    names = ("temperature", "top_p", "max_completion_length")
    options["sampling"] = {name: options.pop(name) for name in names}
    options["rewards"] = options.pop("reward")
    if not sys.stderr.isatty():
        without_bars()
    request = prepare(**options)
    for note in [*request.pair.notes, _settings(request)]:
        tell(note)
    with telling_warnings():
        comparison = measure(request)
    console = Console()
    print_comparison(comparison, console, show=show, judge=request.judge_name)
    if path is not None:
        settings = redacted(given) | {"num_prompts": len(request.prompts), "sampling": vars(request.sampling)}
        write_json(path, as_json(comparison, settings))
        print(path)


def _settings(request: Request) -> str:
    sampling = request.sampling
    how = "greedy" if sampling.temperature == 0 else f"at temperature {sampling.temperature:g}"
    return (
        f"Both continue {len(request.prompts)} prompts {how}, with at most {sampling.max_completion_length} tokens; "
        f"perplexity under '{request.reference[0] if request.reference else request.pair.baseline}'."
    )


def _writable(path: Path) -> Path:
    """Return the path of a file that can be written, before the work starts.

    Raises:
        ValueError: when it is a folder, or its folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`--output {path}` cannot be written ({error.strerror}); choose another file.") from error
    if path.is_dir():
        raise ValueError(f"`--output {path}` is a folder; give a file, such as '{path / 'comparison.json'}'.")
    return path
