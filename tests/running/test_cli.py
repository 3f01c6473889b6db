# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Configurations by path and by short name, truth values without a value."""

import sys
from pathlib import Path

import pytest

from recipes import ppo
from trl_ext.config import PPOConfig
from trl_ext.running.cli import interrupted
from trl_ext.running.config_files import find_config
from trl_ext.running.places import RECIPES

CARD = RECIPES / "configs" / "cards" / "8gb_llama_3b.yaml"


@pytest.mark.parametrize("name", ["cards/8gb_llama_3b", "cards/8gb_llama_3b.yaml", "8gb_llama_3b", "8gb_llama_3b.yaml"])
def test_a_short_name_is_found_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == CARD


def test_a_file_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "8gb_llama_3b.yaml").touch()
    assert find_config("cards/8gb_llama_3b.yaml") == Path("cards/8gb_llama_3b.yaml")
    assert find_config("cards/8gb_llama_3b") == CARD, "without the suffix there is no such file"
    monkeypatch.chdir(RECIPES.parent)
    assert find_config("recipes/configs/cards/8gb_llama_3b.yaml").samefile(CARD)


@pytest.mark.parametrize("name", ["default", "lora.yaml", "a_llama", "qwen2.5", "", "../cards/8gb_llama_3b"])
def test_a_part_of_a_name_or_a_layer_of_defaults_is_no_short_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no file, and no configuration of the recipes has this name"):
        find_config(name or "nothing")


def test_the_command_that_goes_on_hides_the_secrets_of_a_url(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["/bin/python", "-m", "trl_ext", "ppo", "--reward", "http://me:passw@host/score?api_key=k3y&a=1"]
    monkeypatch.setattr(sys, "orig_argv", words)
    with pytest.raises(SystemExit) as end:
        interrupted(KeyboardInterrupt())
    line = capsys.readouterr().err
    assert end.value.code == 130 and "passw" not in line and "k3y" not in line
    assert "python -m trl_ext ppo --reward 'http://(hidden)@host/score?api_key=(hidden)&a=1'" in line


@pytest.mark.parametrize("name", ["use_cpu", "bf16", "scale_returns", "importance_sampling_correction", "tf32"])
def test_a_truth_value_may_stand_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PPOConfig, "__post_init__", lambda self: None)  # without a look at what the device can do
    monkeypatch.setattr("trl_ext.running.cli._check_trackers", lambda names: None)
    parser = ppo.make_parser()
    config = next(part for part in parser.parse([f"--{name}", "--seed", "3"]) if isinstance(part, PPOConfig))
    assert getattr(config, name) is True and config.seed == 3
    config = next(part for part in parser.parse([f"--{name}", "false"]) if isinstance(part, PPOConfig))
    assert getattr(config, name) is False


def test_help_shows_that_truth_values_may_stand_alone() -> None:
    options = ppo.make_parser().describe().options
    assert not [option.name for option in options if option.kind == "bool" and not option.flag]
