# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""
Runs one training several times in child processes: to its end, and killed and resumed. Started by `test_resume.py`.

Children are forked after the imports and before any computation, which spares each one the imports.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import TrainerCallback

from tests import scripted
from trl_ext import AdaptiveKL, PPOTrainer, checkpoint
from trl_ext.monitoring.reward_hacking import RewardHackingMonitor
from trl_ext.rewards import Ensemble, LengthDebiased, RunningNormalization

# "step 3": killed when checkpoint 3 is written; "in 3": killed in the middle of writing it.
KILLS = ("step 1", "step 3", "step 4", "step 7", "in 6")


class KillAt(TrainerCallback):
    """SIGKILL, as a power cut would, right after the checkpoint of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def short(completions: list[str], **kwargs) -> list[float]:
    """Another opinion than `scripted.reward`."""
    return [-len(c) / 8 for c in completions]


def against_hacking() -> dict:
    """An ensemble with a member that learns, PPO-ptx, and a monitor with state in every signal."""
    return {
        "reward_funcs": [
            RunningNormalization(Ensemble([LengthDebiased(scripted.reward, min_samples=8), short], "mean_minus_std"))
        ],
        "ptx_coef": 0.1,
        "ptx_dataset": Dataset.from_dict({"text": [f"the dog sat {'on a mat ' * (i % 3)}{i}" for i in range(11)]}),
        "callbacks": [RewardHackingMonitor(short, warmup=3, max_kl=5.0)],
    }


def make_trainer(folder: Path, kind: str) -> PPOTrainer:
    """Two epochs of two rollouts of four optimizer steps each, with state in every part that can have some."""
    settings = {"reward_funcs": [RunningNormalization(scripted.reward)]} if kind != "hacking" else against_hacking()
    return scripted.trainer(
        folder,
        scripted=False,
        critic={"full": "copy", "lora": "adapter", "hacking": "head"}[kind],
        peft_config=LoraConfig(r=4, target_modules="all-linear") if kind == "lora" else None,
        **settings,
        kl_controller=AdaptiveKL(target=0.5, init_coef=0.1),
        num_mini_batches=2,
        num_train_epochs=2,
        total_episodes=None,
        target_approx_kl=0.05,
        critic_warmup_rollouts=1,
        logging_steps=3,  # so that a kill falls between two logs
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=5,
        eval_dataset=scripted.prompts(3),
        learning_rate=3e-3,
    )


def train(folder: Path, kind: str, kill: str | None, resume: bool) -> None:
    """One run, from the start or from the newest complete checkpoint; leaves what it ended with."""
    trainer = make_trainer(folder, kind)
    how, step = kill.split() if kill else ("", "0")
    if how == "step":
        trainer.add_callback(KillAt(int(step)))
    if how == "in":
        commit = checkpoint.commit

        def dying_commit(path: Path) -> None:
            if path.name == f"checkpoint-{step}":
                os.kill(os.getpid(), signal.SIGKILL)
            commit(path)

        checkpoint.commit = dying_commit
    trainer.train(resume_from_checkpoint=resume)
    save_file({n: p.contiguous() for n, p in scripted.weights(trainer).items()}, folder / "weights.safetensors")
    left = {"log": trainer.state.log_history, "kl": trainer.kl_controller.state_dict()}
    left["rewards"] = trainer.rewards.state_dict()
    monitors = [c for c in trainer.callback_handler.callbacks if isinstance(c, RewardHackingMonitor)]
    left["monitors"] = [monitor.state_dict() for monitor in monitors]
    (folder / "left.json").write_text(json.dumps(left))


def in_child(*args) -> int:
    """Exit code of `train(*args)` in a child process, negative for the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            train(*args)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    root, kind = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    assert in_child(root / "whole", kind, None, False) == 0
    for kill in KILLS:
        folder = root / kill.replace(" ", "-")
        assert in_child(folder, kind, kill, False) == -signal.SIGKILL
        assert in_child(folder, kind, None, True) == 0
