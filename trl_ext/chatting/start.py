# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The beginning of a chat: what is loaded, what the user is told, and where lines are read from."""

import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

from rich.console import Console
from transformers.utils import logging

from trl_ext.messages.printable import one_line

from .opening import Plan, load, plan
from .screen import screen_for
from .session import Session, turn
from .talk import Talk

__all__ = ["answer_once", "chat"]


def answer_once(prompt: str, *, model: str, **options: Any) -> None:
    """Answer one text on the standard output; everything else is written to the standard error output.

    Args:
        prompt: The text. A newline at its end is no part of it.
        model: Name or folder of the model.
        options: As in `chat`.

    Raises:
        ValueError, TypeError, RuntimeError, ImportError, OSError: for anything that cannot be used.
    """
    said = prompt.removesuffix("\n").removesuffix("\r")
    if not said.strip():
        raise ValueError("`--prompt` is empty; give a text.")
    talk, _ = _open(model, options)
    turn(talk, screen_for(Console()), said)


def chat(*, model: str, **options: Any) -> None:
    """Chat on the standard input and output until the user ends it.

    Args:
        model: Name or folder of the model.
        options: Options of `plan`, `load` and `load_finished`; None where one is not given.

    Raises:
        ValueError, TypeError, RuntimeError, ImportError, OSError: for anything that cannot be used.
    """
    talk, planned = _open(model, options)
    screen = screen_for(Console())
    if sys.stdin.isatty():
        how = "Write a message" if planned.conversational else "Write the beginning of a text"
        screen.say(f"{how}. /help lists the commands, /quit ends the chat.")
    Session(talk, screen, _reader()).run()


def _open(model: str, options: dict[str, Any]) -> tuple[Talk, Plan]:
    """Check, tell and load; messages go to the standard error output."""
    loading = {name: options[name] for name in ("load_in_4bit", "device", "trust_remote_code")}
    own = {"dtype": options.pop("dtype"), "seed": options.pop("seed")}
    options["rewards"] = options.pop("reward")
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    planned = plan(model, **options)
    for note in [_settings(planned), *planned.notes]:
        _tell(note)
    with warnings.catch_warnings(record=True) as caught:
        talk = load(planned, **own, **loading)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            _tell(f"warning: {warning.message}")
    return talk, planned


def _settings(planned: Plan) -> str:
    sampling = planned.sampling
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    what = "conversation" if planned.conversational else "continues texts"
    return f"{planned.name}: {what}, {how}, at most {sampling.max_completion_length} tokens."


def _tell(message: str) -> None:
    print(one_line(message, 1000), file=sys.stderr, flush=True)


def _reader() -> Callable[[], str]:
    """Return a function that reads a line of the user, with editing and history where there is a keyboard."""
    if not sys.stdin.isatty():
        return input
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  gives `input` its editing and history

    return lambda: input("> ")
