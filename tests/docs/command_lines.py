# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Command lines of the documentation, read by the parsers of the commands themselves."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.launching import python_path
from trl_ext.commands import main
from trl_ext.running.cli import RecipeParser

from .pages import ROOT

_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*$")
_LAUNCHERS = ("uvx", "accelerate")


class Parsed(BaseException):
    """A parser has accepted the command line; nothing behind it runs."""


def commands(script: str) -> Iterator[list[str]]:
    """The words of each simple command in a script, without assignments, redirections and launchers."""
    for line in script.replace("\\\n", " ").splitlines():
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if words:
                    yield _launched(words)
                words = []
            else:
                words.append(word)


def _launched(words: list[str]) -> list[str]:
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    if words and words[0] in _LAUNCHERS:
        start = next(i for i, word in enumerate(words) if word == "trl_ext" or word.endswith(".py"))
        words = (["python"] if words[start].endswith(".py") else []) + words[start:]
    return words[: next((i for i, word in enumerate(words) if set(word) <= set("<>")), len(words))]


def check_command(words: list[str]) -> None:
    """Let the command's own parser read a command line.

    Raises:
        AssertionError: when it refuses, or the command does not exist.
    """
    if words[0] == "trl_ext":
        _parse(lambda: main(words[1:]), words)
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word]
        assert all(re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE) for target in targets), words
    elif words[:2] == ["python", "-m"]:
        module = words[2]
        if module.split(".")[0] in ("trl_ext", "eval", "tests"):
            assert find_spec(module) is not None, f"there is no module {module}"
            _parse(
                lambda: _run_main(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), words), words
            )
    elif words[0] == "python" and words[1].endswith(".py") and (ROOT / words[1]).exists():
        _parse(lambda: _run_main(lambda: runpy.run_path(str(ROOT / words[1]), run_name="__main__"), words), words)


def _run_main(run: Any, words: list[str]) -> None:
    first = next(i for i, word in enumerate(words) if word.endswith(".py")) if words[1] != "-m" else 2
    sys.argv = words[first:]
    run()


def _parse(call: Any, words: list[str]) -> None:
    argv, line = list(sys.argv), shlex.join(words)
    try:
        with _parsing_only():
            call()
    except Parsed:
        return
    except SystemExit as stop:
        assert stop.code in (0, None), f"refused: {line}"
    else:
        raise AssertionError(f"no parser has read: {line}")
    finally:
        sys.argv = argv


@contextmanager
def _parsing_only() -> Iterator[None]:
    parse_args, parse = ArgumentParser.parse_args, RecipeParser.parse

    def stop_after(parser: Any) -> Any:
        def parsing(self: Any, *args: Any, **kwargs: Any) -> None:
            parser(self, *args, **kwargs)
            raise Parsed

        return parsing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, "parse_args", stop_after(parse_args))
        patch.setattr(RecipeParser, "parse", stop_after(parse))
        yield


def run_script(script: str, folder: Path) -> str:
    """Run a script in a folder, with the command `trl_ext` of this interpreter; return what it prints.

    Raises:
        AssertionError: when it fails.
    """
    shim = folder / ".bin"
    shim.mkdir(exist_ok=True)
    for name, words in {"trl_ext": "-m trl_ext", "python": ""}.items():
        command = shim / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        command.chmod(0o755)
    environment = os.environ | {"PATH": f"{shim}:{os.environ['PATH']}", "PYTHONPATH": python_path()}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout
