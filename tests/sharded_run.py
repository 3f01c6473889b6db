# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Runs that FSDP2 or DeepSpeed shards over two processes, which `accelerate launch` starts with its configuration.

Arguments: the folder to write into, and the runs, by name.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, TrainerCallback

from tests import scripted
from tests.sharded_on_cpu import deepspeed_on_cpu, shard_on_cpu
from tests.tiny_models import tiny_causal_lm
from trl_ext import PPOTrainer, sharding
from trl_ext.monitoring import PhaseProgress
from trl_ext.processes import leave
from trl_ext.running.policy import scored

LORA: dict[str, Any] = {"peft_config": LoraConfig(r=4, target_modules="all-linear"), "critic": "adapter"}
# Every process draws its own texts: from one text all draw the same.
TEXTS = {"ptx_coef": 0.1, "ptx_dataset": Dataset.from_list([{"prompt": "the cat", "completion": " sat on a mat"}])}
# 8 optimizer steps on two rollouts of 16 completions, on however many processes.
RUNS: dict[str, dict[str, Any]] = {
    "head": {"critic_learning_rate": 3e-3, **TEXTS},
    "copy": {"critic": "copy", "policy_ema_decay": 0.7, "scale_returns": True, "gradient_checkpointing": True},
    "adapter": {**LORA, "num_critics": 2, "gradient_checkpointing": True, "critic_reads_reward_every": 1},
    # The gradient of its key biases is rounding noise, which AdamW would blow up.
    "tied": {"arch": "gpt2", "kl_estimator": "exact", "optim": "sgd", "learning_rate": 0.01},
}
# The tiny models' parameters are too small to be partitioned by default, or are kept for the pass after.
PARTITIONED = {"stage3_param_persistence_threshold": 100, "stage3_max_reuse_distance": 0}
SHORT = {"total_episodes": 16}  # 4 optimizer steps
# Runs that FSDP2 refuses: the critic alone learns from the first rollout.
WARM_UP: dict[str, Any] = {"critic_warmup_rollouts": 1, "adam_epsilon": 1e-6}
ZERO_RUNS: dict[str, dict[str, Any]] = {"warm-up": WARM_UP, "warm-up-copy": {**WARM_UP, "critic": "copy"}}
# One of two micro-batches is idle. Which samples share a minibatch depends on the number of processes. A small epsilon
# of AdamW blows up the rounding noise of gradients that are nearly zero, on some processors to 1.6e-5.
IDLE = {"num_ppo_epochs": 2, "num_mini_batches": 2, "adam_epsilon": 1e-6}


def zero_stage() -> str | None:
    """The stage of ZeRO that runs begin with; None without DeepSpeed."""
    return os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] if "ACCELERATE_USE_DEEPSPEED" in os.environ else None


class EndsAt(TrainerCallback):
    """Ends a run after a step: kills its processes, or stops it."""

    def __init__(self, step: int, *, kills: bool):
        self.step, self.kills = step, kills

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        control.should_training_stop |= state.global_step == self.step


def save_reward_adapter(folder: Path) -> str:
    """Save a LoRA reward adapter for the tiny policy, with weights that do something."""
    torch.manual_seed(0)
    config = tiny_causal_lm().config
    config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(config)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    adapted = get_peft_model(classifier, lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return str(folder)


def settings_of(name: str, out: Path) -> dict[str, Any]:
    """The settings of a run; that with adapters has a reward adapter too, in a folder beside it."""
    return (RUNS | ZERO_RUNS)[name] | ({"reward_adapters": [str(out / "reward-adapter")]} if name == "adapter" else {})


def trainer(folder: Path, **settings: Any) -> PPOTrainer:
    """A trainer whose processes share rollouts of 16 completions."""
    AcceleratorState._reset_state(True)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if zero_stage():  # without a GPU accelerate neither starts it with `use_cpu` nor chooses gloo
        settings |= {"use_cpu": False, "ddp_backend": "gloo"}
    defaults = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4 // world, "num_ppo_epochs": 4}
    defaults |= {"total_episodes": 32, "max_grad_norm": 0.5, "whiten_rewards": True}
    model = tiny_causal_lm(settings.pop("arch", "llama"))
    model = settings.pop("model", model)
    made = scripted.trainer(folder, model=model, **defaults | settings)
    kind = "DEEPSPEED" if zero_stage() else "FSDP" if "ACCELERATE_USE_FSDP" in os.environ else "MULTI_CPU"
    assert world == 1 or made.accelerator.distributed_type == kind
    if zero_stage() == "3":
        made.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"] |= PARTITIONED
    return made


def trained(folder: Path, *, resume: bool = False, **settings: Any) -> PPOTrainer:
    """A trainer that has trained, with the model saved in `final`; it was sharded where there are two processes."""
    made = trainer(folder, **settings)
    made.train(resume_from_checkpoint=resume or None)
    if zero_stage() == "3":  # the next step would add to what is left
        assert not sharding.engine_of(made.model).zero.grad_partitions_flat_buffer.any()
    shards = made.accelerator.is_fsdp2 or zero_stage() == "3"
    assert sharding.is_sharded(made.model) == (made.args.world_size > 1 and shards)
    made.save_model(str(folder / "final"))
    if made.is_world_process_zero():
        (folder / "logs.json").write_text(json.dumps(scripted.logs(made)))
    return made


def keep(made: PPOTrainer, file: Path) -> dict[str, torch.Tensor]:
    """Gather all weights, write them on the main process, and return them."""
    state = sharding.gathered_state(made.model)
    if made.is_world_process_zero():
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.clone() for name, value in state.items()}, file)
    return state


class Breaks(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


def break_gradient(made: PPOTrainer, step: int) -> None:
    """Make the second process's gradients of a step NaN; its losses stay finite."""
    compute = made.compute_loss

    def broken(*args, **kwargs):
        loss = compute(*args, **kwargs)
        return Breaks.apply(loss) if made.state.global_step == step and os.environ["RANK"] == "1" else loss

    made.compute_loss = broken


def guards(out: Path) -> None:
    """A step whose gradient is NaN in one process, and steps with too large a loss, are skipped by both."""
    kept: list[list[torch.Tensor]] = []

    class Weights(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.on_step_end(args, state, control)

        def on_step_end(self, args, state, control, **kwargs):
            kept.append([sharding.local(p).detach().clone() for p in sharding.resharded(made.model).parameters()])

    def unmoved() -> list[bool]:
        """Whether the weights of each step are those of the step before."""
        pairs = zip(kept, kept[1:], strict=False)
        return [all(map(torch.equal, before, now)) for before, now in pairs]

    made = trainer(out / "guards", callbacks=[Weights()], save_strategy="steps", save_steps=1, save_total_limit=1)
    break_gradient(made, 2)
    made.train()
    assert unmoved() == [False, False, True, False, False, False, False, False], unmoved()
    assert all(torch.isfinite(p).all() for p in kept[-1])
    norms = [line["grad_norm"] for line in scripted.logs(made)]
    assert norms[2] == 0 and all(norm > 0 for norm in norms[:2] + norms[3:]), norms
    kept.clear()
    made = trainer(out / "loss", callbacks=[Weights()], max_loss=1e-9, **SHORT)
    made.train()
    assert unmoved() == [True] * 4, unmoved()
    kept.clear()
    made = trainer(out / "stop", callbacks=[Weights()], target_approx_kl=1e-9, **SHORT)
    made.train()
    # The second step finds the KL too large, and the rest of the passes is left out.
    assert unmoved() == [False, False, True, True], unmoved()


def half_precision(out: Path) -> None:
    """bf16: the KL is 0 and the ratio 1 before the first update, and log-probabilities are no bf16 numbers.

    The best model of a run is loaded at its end.
    """
    half = {"bf16": True, "gradient_checkpointing": True, **SHORT}
    made = trained(out / "bf16", model=tiny_causal_lm().bfloat16(), **half, **LORA)
    first = scripted.logs(made)[0]
    assert first["kl"] == 0 and first["ratio/max"] == 1
    logps = made._rollout.old_logps
    assert not torch.equal(logps, logps.bfloat16().float())
    evaluations = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": scripted.prompts(5)}
    evaluations |= {"save_strategy": "best", "load_best_model_at_end": True}
    full = trained(out / "bf16-full", critic="copy", scripted=False, **half, **evaluations)
    assert all(p.dtype == torch.float32 for p in full.model.parameters())
    state = sharding.gathered_state(full.model)
    if full.is_world_process_zero():
        best = load_file(Path(full.state.best_model_checkpoint) / "model.safetensors")
        assert all(torch.equal(value, state[f"policy.{name}"]) for name, value in best.items())
    assert full.evaluate()["eval_kl"] > 0
    after = scored(full, PhaseProgress(False), "after")
    assert (after is not None) == full.is_world_process_zero()


def untrained(out: Path) -> None:
    """Before training a model is evaluated, saved and then trained as after it; models by name are loaded whole."""
    settings = {**SHORT, "eval_dataset": scripted.prompts(4), "critic": "copy"}
    made = trainer(out / "untrained", **settings)
    assert made.evaluate()["eval_kl"] == 0
    made.save_model(str(out / "untrained" / "start"))
    made.accelerator.wait_for_everyone()  # the main process alone writes
    named = trainer(out / "named", model=str(out / "untrained" / "start"), **settings)
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, named.model.state_dict()[name]), name
    made.train()
    named.train()
    keep(made, out / "untrained" / "weights.safetensors")
    keep(named, out / "named" / "weights.safetensors")


# Full weights, a separate critic and an average.
SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "scripted": False, **RUNS["copy"]}


def idle(out: Path) -> None:
    """A run with idle micro-batches, with ZeRO and then with DDP in the same processes."""
    trained(out / "idle", **IDLE)
    del os.environ["ACCELERATE_USE_DEEPSPEED"]
    trained(out / "idle-ddp", **IDLE)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"


def main(out: Path, names: list[str]) -> None:
    """Make the runs of these names; "zero1" and the like change the stage of those that follow."""
    root = out
    for name in names:
        if name.startswith("zero"):
            os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = name[-1]
            out = root / name
            out.mkdir(exist_ok=True)
        elif name in RUNS | ZERO_RUNS:
            keep(trained(out / name, **settings_of(name, root)), out / name / "weights.safetensors")
        elif name == "guards":
            guards(out)
        elif name == "idle":
            idle(out)
        elif name == "untrained":
            untrained(out)
        elif name == "half":
            half_precision(out)
        elif name == "whole":
            trained(out / "whole", **SAVES)
        elif name == "stopped":
            trainer(out / "stopped", callbacks=[EndsAt(4, kills=False)], **SAVES).train()
            trained(out / "stopped", resume=True, **SAVES)
        elif name == "killed":
            trainer(out / "killed", callbacks=[EndsAt(5, kills=True)], **SAVES).train()
        elif name == "resumed":
            trained(out / "killed", resume=True, **SAVES)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "ACCELERATE_USE_FSDP" in os.environ:
        shard_on_cpu()
    else:
        deepspeed_on_cpu()
    main(Path(sys.argv[1]), sys.argv[2:])
    leave()
