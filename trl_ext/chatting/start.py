# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The beginning of a chat: what is loaded, what the user is told, and where lines are read from."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from trl_ext.messages.notes import tell, telling_warnings
from trl_ext.running.bars import without_bars

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
        options: Options of the command line; None where one is not given.

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
    seed, names = options.pop("seed"), ("temperature", "top_p", "max_completion_length")
    sampling = {name: options.pop(name) for name in names}
    options |= {"rewards": options.pop("reward"), "with_baseline": not options.pop("no_baseline")}
    if not sys.stderr.isatty():
        without_bars()
    planned = plan(model, sampling=sampling, **options)
    for note in [_settings(planned), *planned.pair.notes]:
        tell(note)
    with telling_warnings():
        return load(planned, seed=seed), planned


def _settings(planned: Plan) -> str:
    sampling = planned.sampling
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    what = "conversation" if planned.conversational else "continues texts"
    return f"{planned.pair.name}: {what}, {how}, at most {sampling.max_completion_length} tokens."


def _reader() -> Callable[[], str]:
    """Return a function that reads a line of the user, with editing and history where there is a keyboard."""
    if not sys.stdin.isatty():
        return input
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  gives `input` its editing and history

    return lambda: input("> ")
