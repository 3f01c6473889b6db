# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""
Runs the instruction recipe in child processes: to its end, and killed in two stages and called again.

Started by `test_instruction_following.py`: everything against reward hacking is on.
"""

import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch
from transformers import TrainerCallback

from recipes import instruction_following
from recipes.instructions import policy, reward_stage
from recipes.offline.instructions_models import InstructionSettings, prepare_instructions

# So many prompts that a model which has learned nothing gives some two answers of which one is better.
TINY = InstructionSettings(texts=64, demonstrations=64, train_prompts=64, eval_prompts=102, hidden_size=32, layers=1)
KILLS = ("reward", "ppo")


class KillAtStep3(TrainerCallback):
    """SIGKILL after the third checkpoint."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def die_in(stage: str) -> None:
    """Make the stage kill this process halfway."""
    if stage == "reward":
        train = reward_stage.train_reward_model

        def second_model_kills(folder, model_folder, *args, **kwargs):
            if model_folder.name == "model-1":
                os.kill(os.getpid(), signal.SIGKILL)
            train(folder, model_folder, *args, **kwargs)

        mock.patch.object(reward_stage, "train_reward_model", second_model_kills).start()
    if stage == "ppo":
        make = policy.make_trainer

        def with_killer(*args, **kwargs):
            trainer, *rest = make(*args, **kwargs)
            trainer.add_callback(KillAtStep3())
            return trainer, *rest

        mock.patch.object(policy, "make_trainer", with_killer).start()


def in_child(stage: str, argv: list[str]) -> int:
    """Exit code of the recipe in a child process that dies in `stage`, negative for the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            die_in(stage)
            instruction_following.main(argv)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    root, flags = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    instruction_following.prepare_instructions = lambda cache: prepare_instructions(root / "world", settings=TINY)
    for stage in ("", *KILLS):
        argv = [*flags, "--output_dir", str(root / (stage or "whole"))]
        if stage:
            assert in_child(stage, argv) == -signal.SIGKILL
            print(f"== {stage} was killed", flush=True)
        assert in_child("", argv) == 0
