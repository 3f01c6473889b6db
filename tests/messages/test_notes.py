# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Warnings of the commands are plain lines, and libraries log nothing that an error of this package says better."""

import logging
import sys
import warnings

import pytest

from trl_ext.commands import COMMANDS, main
from trl_ext.messages.notes import plain_warnings, quiet_libraries


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show warnings as Python does outside of pytest, which records them."""

    def show(message: Warning, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))

    monkeypatch.setattr(warnings, "showwarning", show)


def warn_thrice() -> None:
    for text in ("`total_episodes` 100 is rounded up.", "`total_episodes` 100 is rounded up.", "Another\none."):
        warnings.warn(text, stacklevel=1)
        warnings.resetwarnings()  # as any library may, so that Python would show the next one again


def test_a_warning_is_one_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        before = warnings.formatwarning
        with plain_warnings():
            warn_thrice()
        assert warnings.formatwarning is before
    assert capsys.readouterr().err == "warning: `total_episodes` 100 is rounded up.\nwarning: Another one.\n"


def test_warnings_of_every_command_are_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(COMMANDS["plan"], "main", lambda argv: warn_thrice())
    with warnings.catch_warnings():
        main(["plan"])
    assert capsys.readouterr().err == "warning: `total_episodes` 100 is rounded up.\nwarning: Another one.\n"


def test_a_renamed_property_of_a_library_asks_nothing_of_a_user(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with plain_warnings():
            warnings.warn("`is_gradient_checkpointing` is deprecated.", FutureWarning, stacklevel=1)
            warnings.warn("`other` is deprecated.", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: `other` is deprecated.\n"


@pytest.mark.parametrize(
    ("name", "message", "is_shown"),
    [
        ("transformers.tokenization_utils_base", "Token indices sequence length is longer than (%d > 128).", False),
        ("transformers.tokenization_utils_base", "Another message.", True),
        ("datasets.packaged_modules.json.json", "Failed to load JSON from file", False),
    ],
)
def test_lines_of_libraries(name: str, message: str, is_shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, seen = logging.getLogger(name), []
    quiet_libraries()
    handler = logging.Handler()
    handler.emit = seen.append
    logger.addHandler(handler)
    try:
        logger.error(message)
    finally:
        logger.removeHandler(handler)
    assert bool(seen) == is_shown
