# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of TRL's own trainers, with the manifests of [`trl_ext.folders`]."""

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_ext.checkpoint import checkpoints, recover
from trl_ext.folders import commit, find_damage, is_whole_model, remove
from trl_ext.monitoring.display import show
from trl_ext.running.interrupts import OrderlyStop

KEPT = 2


class CommitCheckpoints(TrainerCallback):
    """Declares each checkpoint complete when it is written, and then deletes older ones."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Commit the checkpoint of this step."""
        folder = Path(str(args.output_dir))
        commit(folder / f"checkpoint-{state.global_step}")
        for old in checkpoints(folder)[:-KEPT]:
            remove(old)


def newest_whole(folder: Path) -> Path | None:
    """Return the newest whole checkpoint that has weights, and delete newer, damaged ones."""
    if folder.is_dir():
        recover(folder)
    for checkpoint in reversed(checkpoints(folder)):
        if find_damage(checkpoint) is None and is_whole_model(checkpoint):
            return checkpoint
        remove(checkpoint)
    return None


def train(trainer: Trainer, name: str = "") -> None:
    """Train from the newest whole checkpoint in the trainer's output directory, where there is one.

    Args:
        trainer: One that keeps all of its checkpoints (`save_total_limit` None), in a directory of its own.
        name: Name of the model in training, for the message after Ctrl-C.
    """
    newest = newest_whole(Path(str(trainer.args.output_dir)))
    display = show(trainer, name or "sft")
    trainer.add_callback(CommitCheckpoints())
    with OrderlyStop(trainer, name), display.training(enabled=True, bars=not trainer.args.disable_tqdm):
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
