# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Where a run comes from: its command, commit and configuration."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from trl import ModelConfig

from trl_ext import PPOConfig, __version__
from trl_ext.reports.origin import command_line, commit, origin
from trl_ext.reports.settings import settings_in_force


def test_a_command_can_be_typed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["/usr/bin/python3", "-m", "trl_ext", "ppo", "--prompt", "two words", "--top_k=3"]
    assert command_line(words) == "python3 -m trl_ext ppo --prompt 'two words' --top_k=3"
    assert shlex.split(command_line(words))[1:] == words[1:]
    assert command_line(["/v/bin/python", "/v/bin/trl_ext", "chat", "out"]) == "trl_ext chat out"
    own = str(tmp_path / "recipes" / "mine.py")
    assert command_line(["python", own, "--data", "/srv/my data/p.jsonl"]) == "python recipes/mine.py --data p.jsonl"


def test_a_command_hides_secrets() -> None:
    words = ["python", "a.py", "--hub_token", "hf_abc", "--api_key=s3cret", "--reward", "http://me:pass@host/?key=x1"]
    shown = command_line([*words, "--password", "--seed", "3"])
    assert not [secret for secret in ("hf_abc", "s3cret", "pass@", "x1") if secret in shown]
    assert "--seed 3" in shown and "host" in shown


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "m"]):
        subprocess.run(["git", *arguments], check=True)
    name = commit()
    assert name is not None and len(name) >= 12 and "changes" not in name
    (tmp_path / "file").write_text("2")
    assert commit() == f"{name}, with changes"


def test_origin_has_versions_and_device() -> None:
    found = origin(torch.device("cpu"), processes=2)
    assert found["device"].startswith("CPU, ") and found["device"].endswith("2 processes")
    assert found["versions"]["trl_ext"] == __version__ and found["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(("threads", "said"), [(1, "CPU, 1 thread"), (2, "CPU, 2 threads")])
def test_threads_of_a_cpu(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert origin(torch.device("cpu"), processes=1)["device"] == said


def test_what_differs_from_the_defaults_and_what_was_in_force(tmp_path: Path) -> None:
    args = PPOConfig(
        output_dir=str(tmp_path / "run"),
        learning_rate=1e-4,
        kl_target=2,
        report_to="none",
        use_cpu=True,
        hub_token="hf_secret",
        model_init_kwargs={"cache_dir": str(tmp_path / "elsewhere" / "cache")},
    )
    config, changed = settings_in_force(
        args, [ModelConfig(model_name_or_path="/srv/models/lm", use_peft=True, lora_r=4)]
    )
    assert set(changed) == {
        *("output_dir", "learning_rate", "kl_target", "use_cpu", "hub_token", "model_init_kwargs"),
        *("model_name_or_path", "use_peft", "lora_r"),
    }
    assert (config["learning_rate"], config["lora_r"], config["gamma"], config["lora_alpha"]) == (1e-4, 4, 1.0, 32)
    assert (config["output_dir"], config["model_name_or_path"]) == ("run", "lm")
    assert "hf_secret" not in str(config) and str(tmp_path) not in str(config)
    config, changed = settings_in_force(PPOConfig(output_dir=str(tmp_path / "run")))
    assert config["hub_token"] is None and "hub_token" not in changed
