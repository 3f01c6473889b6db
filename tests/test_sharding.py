# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""FSDP2 on two processes of a CPU does what one process does."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import sharded_run
from tests.launching import run_command
from trl_ext import ActorCritic, sharding

ROOT = Path(__file__).parents[1]
SCRIPT = Path(sharded_run.__file__)


def launched(out: Path, *runs: str) -> subprocess.CompletedProcess[str]:
    """Make runs in two processes, with the configuration that users are given."""
    config = ROOT / "recipes/configs/accelerate/fsdp2.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--main_process_port", "0"]
    return run_command([*launch, str(SCRIPT), str(out), *runs])


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """The runs of two processes, started with the configuration that users are given; the last one was killed.

    A process was seen to abort while torch gathered an optimizer's state over gloo, in 2 of 12 jobs and only beside
    other tests; the reason is not known. Such a job runs again, and its messages are printed.
    """
    for _ in range(3):
        out = tmp_path_factory.mktemp("sharded")
        sharded_run.save_reward_adapter(out / "reward-adapter")
        done = launched(out, *sharded_run.RUNS, "guards", "half", "whole", "stopped", "killed")
        if "SIGKILL" in done.stderr and (out / "whole" / "final").is_dir():
            return out
        reasons = [line for line in done.stderr.splitlines() if re.search(r"terminate|what\(\)|Enforce|Fatal", line)]
        print("\n".join(reasons), done.stderr[-6000:], sep="\n")
        if "SIGABRT" not in done.stderr:
            break
    raise AssertionError("the job of two processes failed")


def difference(one: Path, two: Path) -> float:
    """The largest difference between the weights in two folders, which hold the same files."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files and files == sorted(path.relative_to(two) for path in two.rglob("*.safetensors"))
    largest = 0.0
    for file in files:
        first, second = load_file(one / file), load_file(two / file)
        assert first.keys() == second.keys() and all(second[n].dtype == first[n].dtype for n in first)
        largest = max(largest, *((first[n] - second[n]).abs().max().item() for n in first))
    return largest


@pytest.mark.parametrize("name", sharded_run.RUNS)
def test_two_processes_end_with_the_weights_of_one(name: str, sharded: Path, tmp_path: Path) -> None:
    """8 optimizer steps: policy, critic and average, as `save_model` leaves them."""
    one = sharded_run.trained(tmp_path / name, **sharded_run.settings_of(name, sharded))
    assert one.state.global_step == 8
    assert difference(tmp_path / name / "final", sharded / name / "final") < 1e-5


@pytest.mark.parametrize("name", ["copy", "adapter"])
def test_one_process_loads_what_two_have_saved(name: str, sharded: Path, tmp_path: Path) -> None:
    one = sharded_run.trainer(tmp_path, **sharded_run.settings_of(name, sharded))
    one.model.load_pretrained(sharded / name / "final")
    gathered = load_file(sharded / name / "weights.safetensors")
    ours = one.model.state_dict()
    assert ours.keys() == gathered.keys()
    assert all(torch.equal(ours[key], gathered[key]) for key in ours)
    one.train()


def test_a_policy_and_its_critic_of_two_processes_start_a_run_of_one(sharded: Path) -> None:
    folder = sharded / "copy" / "final"
    model = ActorCritic(str(folder), critic=str(folder / "critic"))
    gathered = load_file(sharded / "copy" / "weights.safetensors")
    for name, value in model.critic.state_dict().items():
        assert torch.equal(value, gathered[f"critic.{name}"]), name


@pytest.mark.parametrize(("ended", "bound"), [("killed", 1e-6), ("stopped", 0.0)])
def test_a_run_that_ended_early_goes_on_as_if_it_had_not(ended: str, bound: float, sharded: Path) -> None:
    """Killed, and stopped between two checkpoints.

    Within one start of the processes the weights are the same to the last bit; across two starts, gradients were seen
    to differ in theirs.
    """
    if ended == "killed":
        done = launched(sharded, "resumed")
        assert done.returncode == 0, done.stderr[-3000:]
    assert difference(sharded / "whole" / "final", sharded / ended / "final") <= bound
    logs = [json.loads((sharded / name / "logs.json").read_text()) for name in ("whole", ended)]
    for line, again in zip(logs[0][-4:], logs[1][-4:], strict=True):
        assert line["reward"] == again["reward"] and line["loss"] == pytest.approx(again["loss"], abs=bound)


def test_a_checkpoint_has_the_weights_once(sharded: Path) -> None:
    files = {path.name for path in (sharded / "whole" / "checkpoint-6").iterdir()}
    assert {"model.safetensors", "optimizer.bin", "critic", "ema", "manifest.json"} <= files
    assert not any("fsdp" in name for name in files)


def test_functions_leave_a_model_that_is_whole_as_it_is() -> None:
    model = torch.nn.Linear(2, 1)
    with sharding.whole(model):
        assert not sharding.is_sharded(sharding.resharded(model))
    weight = model.weight
    assert sharding.local(weight) is weight is sharding.like(weight, weight)
    sharding.load_state(model, lambda: {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
    assert sharding.gathered_state(model)["weight"].sum() == 2
    state = {"a.weight": weight, "a.bias": model.bias, "ab.c": weight}
    assert sharding.part_of(state, "a", model) == {"weight": weight, "bias": model.bias}
    assert sharding.part_of(state, "a", None) is None and sharding.part_of(None, "a", model) is None
