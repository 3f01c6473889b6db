# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The instruction recipe, killed and interrupted in every stage: it goes on and ends as if nothing had been."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import python_path
from tests.recipes.killed_recipe import INTERRUPTS, KILLS, SMALL
from trl_ext.instructions.stages import read_record

CHANGES = {
    "num_reward_models": 2, "reward_epochs": 4, "reward_batch_size": 8, "aggregation": "mean_minus_std",
    "length_debias": "true", "shaping": "log_sigmoid", "ptx_coef": 0.1, "kl_controller": "pid", "kl_target": 1,
    "gold_kl_budget": 5, "logging_steps": 1,
}  # fmt: skip
MODELS = ("sft/model", "reward/model-0", "reward/model-1", "ppo/model")


def run_script(root: Path, how: str) -> "subprocess.CompletedProcess[str]":
    script = Path(__file__).with_name("killed_recipe.py")
    flags = [part for name, value in (SMALL | CHANGES).items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    environment["HF_DATASETS_CACHE"] = str(root / "datasets")
    command = [sys.executable, script, root, how, *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def ends(folder: Path) -> tuple[dict[str, torch.Tensor], dict, list]:
    """Every weight of every model, the summary, and PPO's log, without what depends on the clock."""
    weights = {
        f"{model}/{name}": tensor
        for model in MODELS
        for name, tensor in load_file(folder / model / "model.safetensors").items()
    }
    summary = json.loads((folder / "summary.json").read_text())
    lines = read_record(folder / "ppo").result["log_history"]
    timing = ("time", "second", "train_loss")
    log = [{k: v for k, v in line.items() if not any(part in k for part in timing)} for line in lines]
    summary["verdict"] = re.sub(r" for (\d+) episodes in .*?\.", r" for \1 episodes.", summary["verdict"])
    del summary["seconds"], summary["train_seconds"], summary["reward_model"]["models"]
    return weights, summary, log


def same_ends(root: Path) -> None:
    whole, stopped = ends(root / "whole"), ends(root / "stopped")
    assert whole[0].keys() == stopped[0].keys()
    assert [name for name in whole[0] if not torch.equal(whole[0][name], stopped[0][name])] == []
    assert stopped[1] == whole[1]
    one, other = (stopped[0][f"reward/model-{i}/score.weight"] for i in (0, 1))
    assert not torch.equal(one, other), "two reward models are one"
    assert len(whole[2]) >= 4 and any("ptx_loss" in line for line in whole[2])
    assert whole[2][0]["step"] == whole[2][0]["eval_kl"] == 0, "the log begins with the initial policy"
    assert stopped[2] == whole[2]


def test_killed_in_every_stage_it_ends_as_if_nothing_had_been(tmp_path):
    done = run_script(tmp_path, "kill")
    assert all(f"== {place}\n" in done.stdout for place in KILLS)
    same_ends(tmp_path)
    left = {path.name for path in (tmp_path / "stopped").rglob(".*") if "ppo" not in path.parts}
    assert left == {".lock"}, "remains of what was killed"


def test_interrupted_in_every_stage_it_says_where_and_goes_on(tmp_path):
    done = run_script(tmp_path, "interrupt")
    same_ends(tmp_path)
    assert "Traceback" not in done.stderr
    last = {}
    for part in done.stderr.split("== ")[1:]:
        place, _, rest = part.partition("\n")
        last[place] = next(line for line in rest.splitlines() if line.startswith("interrupted "))
    assert list(last) == list(INTERRUPTS)
    saved = "; a checkpoint of this step is written"
    assert last["sft"].startswith(f"interrupted in stage `sft` at step 3 of 4{saved}. To go on: python")
    assert last["reward"].startswith("interrupted in stage `reward` (model-1) at step 2 of ")
    assert saved in last["reward"]
    assert last["sampling"].startswith("interrupted in stage `reward`. To go on: python")
    assert last["ppo"].startswith(f"interrupted in stage `ppo` at step 4 of 4{saved}. To go on: python")
    assert last["eval"].startswith("interrupted in stage `eval`. To go on: python")
    assert all(line.endswith("--logging_steps 1") for line in last.values()), "the command that goes on is not whole"


@pytest.mark.parametrize("how_often", [1, 2])
def test_the_second_interruption_ends_at_once(how_often, tmp_path):
    """One signal: the step is finished. Two: the process is gone in the middle of the step."""
    code = """
import os, signal, sys, time
from types import SimpleNamespace
from trl_ext.running.interrupts import Interrupted, OrderlyStop
state = SimpleNamespace(global_step=3, max_steps=9)
trainer = SimpleNamespace(args=SimpleNamespace(world_size=1), state=state, add_callback=lambda c: None)
try:
    with OrderlyStop(trainer, "x") as stop:
        for _ in range(int(sys.argv[1])):
            os.kill(os.getpid(), signal.SIGINT)
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        stop.on_step_end(None, state, control)
        stop.on_save(None, state, control)
        print(control.should_save, control.should_training_stop)
except Interrupted as error:
    print(error.where, error.saved)
"""
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(
        [sys.executable, "-c", code, str(how_often)], env=environment, capture_output=True, text=True, check=False
    )
    if how_often == 2:
        assert done.returncode == -2 and done.stdout == "", done.stderr
    else:
        assert done.returncode == 0 and done.stdout == "True True\n(x) at step 3 of 9 True\n", done.stderr
