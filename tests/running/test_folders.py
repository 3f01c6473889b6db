# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Folders of the recipes: identified by content, whole or not there, never deleted while they hold a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import python_path
from tests.tiny_models import save_tiny, tiny_causal_lm
from trl_ext.actor_critic.names import record_base, recorded_base
from trl_ext.folders import is_whole_model
from trl_ext.instructions.stages import read_record, require, run_stage
from trl_ext.running.folders import content_of, locked, model_content, set_aside_run


def test_data_are_identified_by_their_content(tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"prompt": "a"}\n')
    before = content_of(str(one))
    os.utime(one, (0, 0))
    other.write_bytes(one.read_bytes())
    assert content_of(str(one)) == content_of(str(other)) == before, "the time and the name say nothing"
    times = one.stat()
    one.write_text('{"prompt": "b"}\n')
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_of(str(one)) != before, "the same size and time, another content"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("1")
    whole = content_of(str(folder))
    (folder / "a").rename(folder / "b")
    assert content_of(str(folder)) != whole
    assert (content_of("trl-lib/tldr"), content_of(None)) == ("trl-lib/tldr", None)


def test_a_model_is_identified_by_its_weights(tmp_path):
    folder = Path(save_tiny(tmp_path / "lm", tiny_causal_lm()))
    before = model_content(str(folder))
    (folder / "README.md").write_text("about it")
    assert model_content(str(folder)) == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert model_content(str(folder)) != before


def test_a_second_process_is_kept_out_and_a_killed_one_keeps_nobody_out(tmp_path):
    code = "import sys, time\nfrom pathlib import Path\nfrom trl_ext.running.folders import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)\n"
    environment = os.environ | {"PYTHONPATH": python_path()}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match="Another process is working in .*; wait for it, or choose another"):
            locked(tmp_path).__enter__()
        other.kill()
    with locked(tmp_path):
        pass


# ---- stages ----


def make_model(folder: Path) -> dict:
    tiny_causal_lm().save_pretrained(folder / "model")
    return {"model": str(folder / "model")}


def test_what_another_configuration_made_is_moved_aside_and_named(tmp_path, capsys):
    folder = tmp_path / "sft"
    run_stage("sft", folder, {"epochs": 1, "seed": 0}, (), make_model)
    run_stage("sft", folder, {"epochs": 2, "seed": 0}, (), make_model)
    out = capsys.readouterr().out
    assert f"the configuration has changed (`epochs`); its earlier folder is now '{folder}.old-1'" in out
    assert is_whole_model(tmp_path / "sft.old-1" / "model")
    run_stage("sft", folder, {"epochs": 2, "seed": 0}, ["another"], make_model)
    assert f"an earlier stage was done again; its earlier folder is now '{folder}.old-2'" in capsys.readouterr().out
    assert is_whole_model(tmp_path / "sft.old-2" / "model") and is_whole_model(folder / "model")


def test_a_stage_whose_model_is_gone_is_not_done(tmp_path, capsys):
    folder = tmp_path / "sft"
    record = run_stage("sft", folder, {}, (), make_model)
    (folder / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="whose model .* is missing or damaged; add `sft` to `--stages`"):
        require(folder, "sft", "ppo", record.fingerprint)
    run_stage("sft", folder, {}, (), make_model)
    assert "is missing or damaged and is made again" in capsys.readouterr().out
    assert require(folder, "sft", "ppo", record.fingerprint).result == record.result


def test_a_stage_killed_before_its_first_file_is_not_stuck(tmp_path):
    (tmp_path / ".sft.fresh").mkdir()
    (tmp_path / ".sft.fresh" / ".started.json.tmp").touch()
    run_stage("sft", tmp_path / "sft", {}, (), lambda folder: {})
    assert read_record(tmp_path / "sft") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]


def test_an_earlier_run_is_moved_aside(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert set_aside_run(tmp_path) is None
    tiny_causal_lm().save_pretrained(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"kl": 1}))
    (tmp_path / "log.jsonl").write_text("{}")
    (tmp_path / "checkpoint-7").mkdir()
    aside = set_aside_run(tmp_path)
    assert aside == tmp_path / "earlier-run-1" and is_whole_model(aside)
    assert (aside / "summary.json").is_file() and (aside / "checkpoint-7").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "earlier-run-1"}
    (tmp_path / "log.jsonl").write_text("killed before its first checkpoint")
    assert (set_aside_run(tmp_path) / "log.jsonl").read_text() == "killed before its first checkpoint"


@pytest.mark.parametrize("inside", ["", "checkpoint-7"])
def test_a_run_that_was_moved_aside_finds_its_base(inside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lm").mkdir()
    (Path("out") / inside).mkdir(parents=True)
    Path("out/log.jsonl").touch()
    record_base(Path("out") / inside, "lm")
    aside = set_aside_run(Path("out"))
    again = set_aside_run(Path("out"))
    assert again is None
    monkeypatch.chdir("/")
    assert recorded_base(tmp_path / aside / inside) == str(tmp_path / "lm")
