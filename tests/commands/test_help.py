# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`--help` of every subcommand: at once, with types and defaults, and the same as the recipes' own parsers say."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from recipes import detoxification, instruction_following, ppo
from tests.launching import python_path
from trl_ext.commands import COMMANDS, main
from trl_ext.commands.options_file import LIBRARIES
from trl_ext.running.help import COMMON, OPTIONS_FILE, Recipe, help_parser, read_recipes

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "pandas", "matplotlib", "numpy"}
SCRIPTS = {"ppo": ppo, "detox": detoxification, "instruct": instruction_following}
REMEDY = "run `python -m trl_ext.commands.options_file` and commit the file"


@pytest.fixture(scope="module")
def live() -> dict[str, Recipe]:
    """The recipes as their own parsers describe them."""
    return {name: script.make_parser().describe() for name, script in SCRIPTS.items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_file_of_options_is_what_the_parsers_say(name: str, live: dict[str, Recipe]) -> None:
    kept, made = read_recipes()[name], json.loads(json.dumps(live[name].brief()))
    options = {option.name: option for option in kept.options}
    same_libraries = json.loads(OPTIONS_FILE.read_text())["made_with"] == {lib: version(lib) for lib in LIBRARIES}
    assert kept.command == made[0] and kept.description == made[1] and kept.epilog == made[2], REMEDY
    for option in live[name].brief().options:
        if option.group in live[name].shown or same_libraries:
            stored = options.get(option.name)
            assert stored is not None and json.loads(json.dumps(stored)) == json.loads(json.dumps(option)), REMEDY
    assert not same_libraries or [option.name for option in live[name].options] == list(options), REMEDY


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_within_two_seconds(name: str) -> None:
    code = "import sys\nfrom trl_ext.commands import main\ntry:\n    main([sys.argv[1], '--help'])\nfinally:\n"
    code += "    import time\n    print(time.process_time(), *sys.modules)"
    environment = os.environ | {"PYTHONPATH": python_path()}
    command = [sys.executable, "-c", code, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: trl_ext {name} "), done.stderr
    seconds, *modules = done.stdout.splitlines()[-1].split()
    assert not HEAVY & set(modules) and float(seconds) < 2  # of this process, however busy the machine is


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_text_fits_the_terminal_and_gives_types_and_defaults(
    name: str,
    columns: int,
    live: dict[str, Recipe],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    main([name, "--help"])
    text = capsys.readouterr().out
    long = [line for line in text.splitlines()[1:] if len(line) >= min(columns, 121)]
    assert all(line.startswith("  --") and "   " not in line[2:] for line in long), long  # names alone
    assert text == SCRIPTS[name].make_parser().format_help()
    titles = [line[:-1] for line in text.splitlines() if re.fullmatch(r"\S.*:", line) and len(line) < 40]
    assert titles == ["general", *live[name].shown, "examples"] and len(text.splitlines()) < (
        350 if columns > 100 else 700
    )
    text = text.split("\nexamples:")[0]
    for option in live[name].options:
        if option.group in live[name].shown:
            assert len(re.findall(rf"^  --{option.name}\b[, ]", text, re.M)) == 1, option.name
            assert len(re.findall(rf"--no_{option.name}\b", text)) == option.negative
    shown = re.sub(r"\s+", " ", text)
    assert "--use_peft [BOOL]" in shown and "--learning_rate FLOAT Initial" in shown and "--seed INT" in shown
    assert "--kl_controller fixed|adaptive|pid|scheduled" in shown and "--stop_strings TEXT ..." in shown
    assert set(COMMON) <= set(re.findall(r"^  --(\w+)", text, re.M)) and "--learning-rate" not in text
    assert "max_grad_norm" not in re.findall(r"^  --(\w+)", text, re.M) and "SUPPRESS" not in text
    assert "--help_all Show all options and end. --config FILE" in shown


def test_defaults_are_those_of_the_recipe(live: dict[str, Recipe]) -> None:
    defaults = {name: {option.name: option.default for option in recipe.options} for name, recipe in live.items()}
    for name, script in SCRIPTS.items():
        configs = {"ppo": "ppo", "detox": "detoxification", "instruct": "instruction_following"}[name]
        written = Path(script.__file__).parent / "configs" / configs / "default.yaml"
        args = script.make_parser().parse(["--config", str(written)])[-2]
        for option in ("learning_rate", "kl_controller", "total_episodes", "num_mini_batches", "save_steps", "lam"):
            assert defaults[name][option] == getattr(args, option)


def test_help_all_shows_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        ppo.main(["--help_all"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for name in ("max_grad_norm", "lora_target_modules", "warmup_steps", "fsdp", "reward", "kl_coef"):
        assert re.search(rf"^  --{name} \S+ +\S|^  --{name} [^\n]*\n +\S", text, re.M), name
    assert "--average_tokens_across_devices [BOOL], --no_average_tokens_across_devices" in text


COMPLETE = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_shtab_trl_ext
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)
    (tmp_path / "my_rewards.py").touch()
    for words, answers in {
        "pp": ["ppo"],
        "ppo --kl_con": ["--kl_controller"],
        "ppo --kl_controller p": ["pid"],
        "ppo --use_peft f": ["false"],
        "ppo --warmup_st": ["--warmup_steps"],
        "ppo --reward my": ["my_rewards.py"],
        "ppo --reward my_rewards.py:f --kl_t": ["--kl_target"],
        "ppo --no_shuf": ["--no_shuffle_dataset"],
        "chat --base": ["--baseline", "--base_model"],
        "merge --dtype bf": ["bfloat16"],
        "merge my": ["my_rewards.py"],
        "completion z": ["zsh"],
    }.items():
        command = ["bash", "-c", COMPLETE, "bash", "completion.sh", "trl_ext", *words.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == answers, (words, done.stdout, done.stderr)


def test_zsh_gets_a_script_too(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "zsh"])
    text = capsys.readouterr().out
    assert text.startswith("#compdef trl_ext") and "--kl_controller" in text


def test_the_parsers_for_help_are_those_of_the_file() -> None:
    for name, recipe in read_recipes().items():
        assert help_parser(recipe).format_help().startswith(f"usage: trl_ext {name} ")
