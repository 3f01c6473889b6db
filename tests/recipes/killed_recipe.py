# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Runs the instruction recipe in child processes: to its end, and again and again, each time stopped at another place.

Started by `test_killed_recipe.py`: `killed_recipe.py FOLDER kill|interrupt [option ...]`. Prints `== PLACE` before each
child that is to be stopped at that place; the run that nothing stops is in FOLDER/whole, the other in FOLDER/stopped.
"""

import os
import re
import signal
import sys
from pathlib import Path
from unittest import mock

import torch
from transformers import Trainer, TrainerCallback

from recipes import instruction_following
from trl_ext.instructions import names
from trl_ext.running.cli import run
from trl_ext.worlds.instructions_models import InstructionSettings, prepare_instructions

# So many prompts that a model which has learned nothing gives some two answers of which one is better.
TINY = InstructionSettings(texts=64, demonstrations=64, train_prompts=64, eval_prompts=102, hidden_size=32, layers=1)

SMALL = {
    "num_preference_pairs": 48,
    "num_preference_eval": 102,
    "reward_epochs": 1,
    "sft_batch_size": 16,
    "reward_batch_size": 16,
    "total_episodes": 64,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_mini_batches": 1,
    "num_eval_prompts": 17,
    "num_monitor_prompts": 8,
    "eval_steps": 2,
    "save_steps": 1,
    "calibration_prompts": 16,
    "max_completion_length": 6,
    "disable_tqdm": "true",
}

# Place: the call of the operating system before which the process dies, a pattern in its path, and the how-manieth.
KILLS = {
    "the first stage begins": ("replace", ".sft.fresh", 1),
    "a checkpoint is half written": ("replace", "sft/checkpoints/model/checkpoint-2/manifest.json", 1),
    "an old checkpoint is half deleted": ("unlink", "sft/checkpoints/model/.removed-checkpoint-1", 3),
    "the SFT model is half written": ("fsync", "sft/.model.unfinished", 3),
    "the SFT model is written": ("replace", "sft/.model.unfinished", 1),
    "the checkpoints of SFT are half deleted": ("unlink", "sft/.removed-checkpoints", 5),
    "the SFT stage is recorded": ("replace", "sft/.stage.json", 1),
    "pairs are written": ("replace", "reward/.pairs_eval.jsonl", 1),
    "model 0 is trained": ("replace", "reward/checkpoints/model-0/checkpoint-3/manifest.json", 1),
    "model 0 is written": ("fsync", "reward/.model-0.unfinished", 2),
    "the checkpoints of model 0 are about to be deleted": ("replace", "reward/checkpoints/.removed-model-0", 1),
    "the checkpoints of model 0 are half deleted": ("unlink", "reward/checkpoints/.removed-model-0", 5),
    "model 1 is trained": ("replace", "reward/checkpoints/model-1/checkpoint-2/manifest.json", 1),
    "the checkpoints of model 1 are half deleted": ("unlink", "reward/checkpoints/.removed-model-1", 1),
    "PPO is trained": ("replace", "ppo/checkpoint-3/manifest.json", 1),
    "a checkpoint of PPO is half deleted": ("unlink", r"ppo/(\.removed-)?checkpoint-\d", 2),
    "the policy is half written": ("fsync", "ppo/.model.unfinished", 3),
    "the policy is written": ("replace", "ppo/.model.unfinished", 1),
    "the summary is written": ("replace", "summary.json", 1),
}
# Place: the output directory of the Trainer that is interrupted, and the step; without a step, before the first.
INTERRUPTS = {
    "sft": ("sft/checkpoints/model", 2),
    "sampling": ("reward", None),
    "reward": ("reward/checkpoints/model-1", 1),
    "ppo": ("ppo", 3),
    "eval": ("eval", None),
}


def kill_before(call: str, part: str, number: int) -> None:
    """Make this process kill itself before the `number`th call of os.`call` whose path has the pattern `part`."""
    original, seen = getattr(os, call), 0

    def dies(path, *args, **kwargs):
        nonlocal seen
        where = path if isinstance(path, str | Path) else None
        if isinstance(path, int):
            where = os.readlink(f"/proc/self/fd/{path}")
        elif kwargs.get("dir_fd") is not None:
            where = os.path.join(os.readlink(f"/proc/self/fd/{kwargs['dir_fd']}"), path)
        # The file that a temporary one becomes is the name to go by.
        if re.search(part, str(where)) or any(re.search(part, str(arg)) for arg in args):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return original(path, *args, **kwargs)

    mock.patch.object(os, call, dies).start()


class InterruptAt(TrainerCallback):
    """Ctrl-C in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def interrupt_at(part: str, step: int | None) -> None:
    """Make this process interrupt itself, as Ctrl-C does, at a step of a training, in sampling or in the evaluation."""
    if step is not None:
        train = Trainer.train

        def interrupted(self, *args, **kwargs):
            if str(self.args.output_dir).endswith(part):
                self.add_callback(InterruptAt(step))
            return train(self, *args, **kwargs)

        mock.patch.object(Trainer, "train", interrupted).start()
        return
    module, name = {
        "reward": ("trl_ext.instructions.reward_stage", "sample_answers"),
        "eval": ("trl_ext.instructions.comparison", "measure"),
    }[part]
    target = sys.modules[module]
    work = getattr(target, name)

    def interrupts(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return work(*args, **kwargs)

    mock.patch.object(target, name, interrupts).start()


def in_child(prepare, argv: list[str]) -> int:
    """Exit code of the recipe in a child process, negative for the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prepare()
            run(lambda: instruction_following.main(argv))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    root, how, flags = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    torch.set_num_threads(1)
    names.prepare_instructions = lambda cache: prepare_instructions(root / "world", settings=TINY)
    assert in_child(lambda: None, [*flags, "--output_dir", str(root / "whole")]) == 0
    argv = [*flags, "--output_dir", str(root / "stopped")]
    places = KILLS if how == "kill" else INTERRUPTS
    for place, arguments in places.items():
        print(f"== {place}", flush=True)
        print(f"== {place}", file=sys.stderr, flush=True)
        if how == "kill":
            code = in_child(lambda a=arguments: kill_before(*a), argv)
            assert code == -signal.SIGKILL, f"{place}: {code}"
        else:
            code = in_child(lambda a=arguments: interrupt_at(*a), argv)
            assert code == 130, f"{place}: {code}"
    print("== end", flush=True)
    assert in_child(lambda: None, argv) == 0
