# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Where a run comes from: the command that repeats it, versions, commit and device; without paths of the machine."""

import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from trl_ext import __version__
from trl_ext.messages.places import without_places
from trl_ext.messages.redaction import HIDDEN, is_secret, redacted_text

__all__ = ["command_line", "commit", "origin"]

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def origin(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Return `command`, `commit`, `device` and `versions` (by library) of this process; None where there is none.

    Args:
        device: Device that the run trains on.
        processes: Number of processes of the run.
    """
    versions = {"trl_ext": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": None if "ipykernel" in sys.modules else command_line(sys.orig_argv),
        "commit": commit(),
        "device": _device(device) + (f", {processes} processes" if processes > 1 else ""),
        "versions": versions,
    }


def command_line(words: Sequence[str]) -> str:
    """Return a command as one types it into a shell, with secrets hidden and without paths of the machine.

    Args:
        words: As `sys.orig_argv` has them: the interpreter first.
    """
    program, *rest = words
    if rest and Path(rest[0]).name == "trl_ext":  # the console script, which the interpreter runs
        program, *rest = rest
    shown, hide = [Path(program).name], False
    for word in rest:
        option, equals, value = word.partition("=")
        if hide and not word.startswith("--"):
            shown.append(HIDDEN)
        elif equals and option.startswith("-"):
            shown.append(f"{option}={HIDDEN if is_secret(option) else without_places(redacted_text(value))}")
        else:
            shown.append(without_places(redacted_text(word)))
        hide = word.startswith("--") and not equals and is_secret(option)
    return shlex.join(shown)


def commit() -> str | None:
    """Return the git commit of the current folder, marked where files in it were changed; None without git."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                [git, "--no-optional-locks", *arguments], capture_output=True, text=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    name = ask("rev-parse", "--short=12", "HEAD")
    if not name:
        return None
    return f"{name}, with changes" if ask("status", "--porcelain", "--untracked-files=no") else name


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread" + "s" * (threads > 1)
    return str(device)
