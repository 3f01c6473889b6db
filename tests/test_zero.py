# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""DeepSpeed's ZeRO on two processes of a CPU does what one process does."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.training_args import OptimizerNames, ParallelMode

from tests import sharded_run
from tests.launching import run_command
from tests.test_sharding import ROOT, SCRIPT, difference
from tests.tiny_models import tiny_causal_lm
from trl_ext import PPOConfig
from trl_ext.actor_critic.loading import load_critic, load_policy
from trl_ext.assembly import check_not_quantized
from trl_ext.checks.deepspeed import check_deepspeed
from trl_ext.running.policy import refuse_fsdp

# Every import of accelerate would import it too, where it is installed among the other packages.
FOLDERS = sorted(Path(sys.prefix).glob("deepspeed-*"))
RUNS = {
    "zero1": ("head", "adapter"),
    "zero2": (*sharded_run.RUNS, *sharded_run.ZERO_RUNS),
    "zero3": (*sharded_run.RUNS, "warm-up"),
}

STAGES = pytest.mark.parametrize("stage", ["zero2", "zero3"])


def launched(out: Path, *runs: str, config: str = "zero2") -> subprocess.CompletedProcess[str]:
    """Make runs in two processes, with the configuration that users are given."""
    config = str(ROOT / f"recipes/configs/accelerate/{config}.yaml")
    launch = ["-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", "0"]
    return run_command([*launch, str(SCRIPT), str(out), *runs], first_on_path=FOLDERS)


def runs_of(stages: tuple[str, ...], config: str, out: Path) -> Path:
    """Make the runs of two processes, by stage; the last one was killed."""
    if not FOLDERS and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: `make test` installs it into a folder of its own")
    sharded_run.save_reward_adapter(out / "reward-adapter")
    equal = [word for stage in stages for word in (stage, *RUNS[stage], "guards")]
    half = () if config == "zero3" else ("half",)
    done = launched(out, *equal, "idle", "untrained", *half, "whole", "stopped", "killed", config=config)
    assert "SIGKILL" in done.stderr and (out / config / "whole" / "final").is_dir(), done.stderr[-6000:]
    return out


@pytest.fixture(scope="module")
def whole_weights(tmp_path_factory) -> Path:
    """The runs of ZeRO-1 and 2, which leave a process all weights."""
    return runs_of(("zero1", "zero2"), "zero2", tmp_path_factory.mktemp("zero"))


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory) -> Path:
    """The runs of ZeRO-3."""
    return runs_of(("zero3",), "zero3", tmp_path_factory.mktemp("zero3"))


@pytest.fixture
def zero(stage: str, request: pytest.FixtureRequest) -> Path:
    """The runs of a stage, in the folder of its name."""
    return request.getfixturevalue("partitioned" if stage == "zero3" else "whole_weights")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a run of one process, by its name, which is made once."""
    out = tmp_path_factory.mktemp("one")
    sharded_run.save_reward_adapter(out / "reward-adapter")

    @cache
    def folder(name: str) -> Path:
        one = sharded_run.trained(out / name, **sharded_run.settings_of(name, out))
        assert one.state.global_step == 8
        return out / name / "final"

    return folder


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage, names in RUNS.items() for name in names])
def test_two_processes_end_with_the_weights_of_one(
    stage: str, name: str, zero: Path, one_process: Callable[[str], Path]
) -> None:
    """8 optimizer steps: policy, critic and average, as `save_model` leaves them."""
    assert difference(one_process(name), zero / stage / name / "final") < 1e-5


@STAGES
def test_idle_micro_batches_change_nothing(stage: str, zero: Path) -> None:
    assert difference(zero / stage / "idle" / "final", zero / stage / "idle-ddp" / "final") < 1e-5


@STAGES
def test_what_was_done_before_training_changes_nothing(stage: str, zero: Path) -> None:
    start = load_file(zero / stage / "untrained" / "start" / "model.safetensors")
    ends = [load_file(zero / stage / name / "weights.safetensors") for name in ("untrained", "named")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert not all(torch.equal(value, ends[0][f"policy.{name}"]) for name, value in start.items())


@STAGES
@pytest.mark.parametrize("name", ["copy", "adapter"])
def test_one_process_loads_what_two_have_saved(name: str, stage: str, zero: Path, tmp_path: Path) -> None:
    one = sharded_run.trainer(tmp_path, **sharded_run.settings_of(name, zero))
    one.model.load_pretrained(zero / stage / name / "final")
    theirs = load_file(zero / stage / name / "weights.safetensors")
    assert all(torch.equal(value, theirs[name]) for name, value in one.model.state_dict().items())
    one.train()


@STAGES
@pytest.mark.parametrize("ended", ["killed", "stopped"])
def test_a_run_that_ended_early_goes_on_as_if_it_had_not(ended: str, stage: str, zero: Path) -> None:
    if ended == "killed":
        done = launched(zero, stage, "resumed", config=stage)
        assert done.returncode == 0, done.stderr[-3000:]
    folder = zero / stage
    assert difference(folder / "whole" / "final", folder / ended / "final") == 0
    logs = [json.loads((folder / name / "logs.json").read_text()) for name in ("whole", ended)]
    for line, again in zip(logs[0][-4:], logs[1][-4:], strict=True):
        assert all(line[name] == again[name] for name in ("reward", "loss", "grad_norm", "learning_rate"))


@STAGES
def test_a_checkpoint_has_the_weights_once(stage: str, zero: Path) -> None:
    folder = zero / stage / "whole" / "checkpoint-6"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert {"model.safetensors", "critic/model.safetensors", "ema", "manifest.json"} <= files
    assert {name for name in files if name.startswith("global_step/")} == {
        f"global_step/optimizer_{rank}.safetensors" for rank in range(2)
    }


# Settings of PPOConfig, sections of DeepSpeed's configuration, and the message.
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"zero_optimization": {"stage": 0}}, "`zero_stage` 0 shards nothing; set 1, 2 or 3"),
    ({}, {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "`zero_quantized_weights` is not supp"),
    ({}, {"optimizer": {"type": "Adam"}}, "has `optimizer`, which is not supported: .* use `optim`"),
    ({}, {"scheduler": {"type": "WarmupLR"}}, "has `scheduler`, .* use `lr_scheduler_type`"),
    ({}, {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "`offload_optimizer` to 'cpu'"),
    ({"fp16": True}, {}, "`fp16` is not supported with DeepSpeed; use `bf16` or float32"),
    ({"optim": OptimizerNames.ADAFACTOR}, {}, "`optim='adafactor'` needs the shapes of weights"),
    ({"parallel_mode": ParallelMode.NOT_DISTRIBUTED}, {}, "DeepSpeed finds no GPU, .* set `ddp_backend` to gloo"),
]


@pytest.mark.parametrize(("settings", "sections", "message"), REFUSED)
def test_what_deepspeed_cannot_do(settings: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    config = {"zero_optimization": {"stage": 2, "offload_param": {"device": "none"}}} | sections
    plugin = SimpleNamespace(zero_stage=config["zero_optimization"]["stage"], deepspeed_config=config)
    usual = {"parallel_mode": ParallelMode.DISTRIBUTED, "optim": OptimizerNames.ADAMW_TORCH, "fp16": False}
    usual |= {"fp16_full_eval": False, "bf16_full_eval": False, "deepspeed_plugin": plugin}
    with pytest.raises(ValueError, match=message):
        check_deepspeed(SimpleNamespace(**usual | settings))


def test_deepspeed_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(**settings: Any) -> str:
        with pytest.raises(ValueError) as raised:
            PPOConfig(output_dir=str(tmp_path), deepspeed={"zero_optimization": {"stage": 2}}, **settings)
        return str(raised.value)

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    assert refusal() == "DeepSpeed is not installed; run `pip install 'trl_ext[deepspeed]'`, or use FSDP2."
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "deepspeed" else find(name))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.19.7")
    assert refusal().startswith("DeepSpeed is older than 0.19.8, and would step before PPO can drop a step")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.19.10")
    assert refusal(use_cpu=True).startswith("DeepSpeed does not start with `use_cpu`")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert refusal() == "DeepSpeed needs `accelerate launch` or `torchrun`, for one process too."


def test_what_trains_outside_of_the_engine_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    made.deepspeed_plugin = SimpleNamespace(zero_stage=2, deepspeed_config={"zero_optimization": {"stage": 2}})
    monkeypatch.setattr(PPOConfig, "parallel_mode", ParallelMode.DISTRIBUTED)
    made.check()
    made.critic_epochs = 2
    with pytest.raises(ValueError, match="`critic_epochs` 2 trains the critic outside of DeepSpeed"):
        made.check()


def test_what_cannot_be_gathered_is_refused_with_zero3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    made.deepspeed_plugin = SimpleNamespace(zero_stage=3, deepspeed_config={"zero_optimization": {"stage": 3}})
    monkeypatch.setattr(PPOConfig, "parallel_mode", ParallelMode.DISTRIBUTED)
    made.critic_warmup_rollouts = 1  # FSDP alone excludes it
    made.check()
    for name in ("merge_adapters_while_sampling", "use_transformers_continuous_batching", "use_vllm"):
        setattr(made, name, True)
        with pytest.raises(ValueError, match=f"`{name}` True is not supported with ZeRO-3"):
            made.check()
        setattr(made, name, False)
    with pytest.raises(ValueError, match="`trl_ext detox` does not work with ZeRO-3; use `trl_ext ppo`, or set"):
        refuse_fsdp(made, "trl_ext detox")
    with pytest.raises(ValueError, match="A quantized `model` is not supported with ZeRO-3"):
        check_not_quantized(tiny_causal_lm(), {"load_in_4bit": True}, {}, "ZeRO-3")


def test_a_model_that_was_partitioned_before_is_refused() -> None:
    model = tiny_causal_lm()
    next(model.parameters()).ds_tensor = torch.zeros(1)  # as `deepspeed.zero.Init` leaves it
    with pytest.raises(ValueError, match="`model` was loaded in parts, by `deepspeed.zero.Init`"):
        load_policy(model)
    with pytest.raises(ValueError, match="`critic` was loaded in parts"):
        load_critic(model, tiny_causal_lm(), device=None)
