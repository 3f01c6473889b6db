# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The command line: its table of subcommands, its speed, and former names that forward."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trl_ext
from tests.launching import python_path
from trl_ext.commands import COMMANDS, main
from trl_ext.running.places import RECIPES

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": python_path()}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_help_lists_every_subcommand_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        lines = capsys.readouterr().out.splitlines()
        assert end.value.code == 0 and max(map(len, lines)) <= 120
        for name, module in COMMANDS.items():
            assert [line.split(maxsplit=1) for line in lines].count([name, module.SUMMARY]) == 1
            file = name.replace("-", "_")
            assert module.__name__ == f"trl_ext.commands.{file}" and module.__doc__.startswith(f"`trl_ext {name}")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"trl_ext {trl_ext.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plam", "--model", "x"], "There is no command `plam`: did you mean `plan`?"),
        (["qqqqqq"], "There is no command `qqqqqq`: `trl_ext --help` lists all of them."),
        (["--models"], "`trl_ext` also needs COMMAND; see `--help`."),
    ],
)
def test_an_unknown_subcommand_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert (end.value.code, capsys.readouterr().err) == (2, f"error: {message}\n")


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("trl_ext", "trl_ext"),
        ("trl_ext.actor_critic.plan", "trl_ext plan"),
        ("trl_ext.planner.plan", "trl_ext plan"),
        ("trl_ext.actor_critic.merge", "trl_ext merge"),
        ("trl_ext.rewards.warm", "trl_ext average"),
        ("trl_ext.worlds", "trl_ext worlds"),
        ("recipes.offline", "trl_ext worlds"),
    ],
)
def test_former_names_forward(module: str, command: str) -> None:
    done = python("-m", module, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {command}"), done.stderr[-2000:]


def test_a_recipe_runs_with_the_rest_of_the_command_line(tmp_path: Path) -> None:
    done = python("-m", "trl_ext", "instruct", "--stages", "sft", "dance", cwd=tmp_path)
    begin, refusal = done.stderr.splitlines()
    assert done.returncode == 2 and begin == "... loading the libraries" and "got ['dance']" in refusal


def test_the_recipes_are_beside_the_package_in_a_clone() -> None:
    assert RECIPES == ROOT / "recipes"


@pytest.mark.parametrize("command", ["plan", "merge", "chat"])
def test_ctrl_c_ends_any_subcommand_without_a_traceback(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[command], "main", interrupted)
    with pytest.raises(SystemExit) as end:
        main([command])
    assert end.value.code == 130
