# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Text of others does not command the terminal, and hides nothing from the eye."""

import io
import logging
import warnings

import pytest
from rich.console import Console

from eval.quality.cli import run_command
from eval.quality.win_rate import build_table, by_category, count
from trl_ext.messages.printable import brief, error_text, is_plain_name, one_line, printable
from trl_ext.monitoring import SampleTable
from trl_ext.reports.report import write_report
from trl_ext.rewards import RewardRunner, check_reward
from trl_ext.running.cli import fail


def refuse(message):
    raise ValueError(message)


HOSTILE = {
    "colour": ("\x1b[31mred\x1b[0m", "red"),
    "cleared screen": ("a\x1b[2J\x1b[Hb", "ab"),
    "title": ("a\x1b]0;owned\x07b", "ab"),
    "link": ("\x1b]8;;http://evil\x1b\\text\x1b]8;;\x1b\\", "text"),
    "one-byte sequence": ("a\x9b31mb\x9d0;owned\x9cc", "abc"),
    "device string": ("a\x1bPowned\x1b\\b", "ab"),
    "title without an end": ("a\x1b]0;kept", "a0;kept"),
    "lone escape": ("a\x1b", "a"),
    "charset": ("a\x1b(0b", "ab"),
    "overwritten line": ("good\rbad", "goodbad"),
    "line end of Windows": ("a\r\nb", "a\nb"),
    "bell, backspace, delete": ("a\x07\x08\x7f\x00b", "ab"),
    "override": ("a\u202edrow\u202c", "adrow"),
    "isolate": ("a\u2066b\u2069\u200f\u061c", "ab"),
    "zero width": ("a\u200bb\u200c\u200dc\ufeff\u2060\u00ad", "abc"),
    "separators": ("a\u2028b\u2029", "ab"),
    "tags": ("a\U000e0041\U000e007f\ufe0f", "a"),
    "half an emoji": ("a\ud83d", "a\ufffd"),
    "kept": ("tab\there\nnew line, ÄÖ 今天 😀 [bold]x[/]", "tab\there\nnew line, ÄÖ 今天 😀 [bold]x[/]"),
}
ALL = "".join(text for name, (text, _) in HOSTILE.items() if name not in ("kept", "line end of Windows"))
FORBIDDEN = set("\x1b\x9b\x9d\x07\x08\x7f\x00\r\u202e\u202c\u2066\u200b\u200d\ufeff\u00ad\u2028\U000e0041")


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_left_of_a_text(name):
    text, left = HOSTILE[name]
    assert printable(text) == left
    assert printable(left) == left


def test_lines_and_errors():
    assert one_line("a\n  b\tc " + "x" * 500, 20) == "a b c xxxxxxxxxxxxx…"
    assert error_text(ValueError("https://me:pw@h\n\x1b[2J")) == "ValueError: https://(hidden)@h"
    assert error_text(KeyError()) == "KeyError"
    assert brief(["\u202e"]) == "['\\u202e']"

    class Mean:
        def __repr__(self):
            raise ValueError

    assert brief(Mean()) == "a Mean"


@pytest.mark.parametrize("name", ["ppo", "ppo 2", "Über-lauf_1.5", "a..b", ".hidden"])
def test_names_that_stay_in_their_folder(name):
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/tmp", "a\\b", "C:x", "~", "~me", "a\nb", "a\u202eb", " a", "a\x00b", "x" * 300],
)
def test_names_that_do_not(name):
    assert not is_plain_name(name)


def test_nothing_hostile_is_printed(tmp_path, capsys, caplog):
    """Through every way on which text of a model, a data set or an exception reaches a person."""
    table = SampleTable()
    table.fill([ALL, [{"role": ALL, "content": ALL}]], [ALL, ALL], {f"reward {ALL}": [1.0, None]})
    console = Console(file=io.StringIO(), width=200)
    table.print(console)
    categories = by_category([1, -1], [f"[red]{ALL}", "[/b]"])
    console.print(build_table(count([1, -1]), categories))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]" in printed and "[/b]" in printed  # no markup either

    def raises(completions, **columns):
        raise ValueError(ALL)

    raises.__name__ = f"raises{ALL}"
    caplog.set_level(logging.INFO)
    told = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RewardRunner(raises, retries=0, max_reward_failures=1.0)([ALL], [ALL], [[1]], {})
        for call in (lambda: RewardRunner(raises, retries=0)([ALL], [ALL], [[1]], {}), lambda: check_reward(raises)):
            with pytest.raises((RuntimeError, ValueError)) as raised:
                call()
            told.append(str(raised.value))
    told += [str(w.message) for w in caught] + caplog.messages
    assert len(told) > 3
    assert run_command(lambda: refuse(ALL)) == 2
    with pytest.raises(SystemExit):
        fail(ValueError(ALL))
    printed += capsys.readouterr().err
    page = write_report(
        tmp_path / "report.html", title=ALL, samples=[{"prompt": ALL, "before": ALL, "after": ALL}], config={ALL: ALL}
    )
    for text in (printed, page.read_text(encoding="utf-8"), *told):
        assert not set(text) & FORBIDDEN, sorted(map(hex, map(ord, set(text) & FORBIDDEN)))
        assert "owned" not in text and "evil" not in text
