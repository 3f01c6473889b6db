# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of TRL's trainers that are whole or do not count."""

import re
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipes.folders import discard, is_whole_model, sweep
from recipes.interrupts import OrderlyStop
from trl_ext.checkpoint import commit, is_complete

KEPT = 2


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, in the order of their steps."""
    named = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(named, key=lambda path: int(path.name.split("-")[1]))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was declared complete, is as it was then, and has weights."""
    return is_complete(checkpoint) and is_whole_model(checkpoint)


class CommitCheckpoints(TrainerCallback):
    """Declares every checkpoint complete once it is, and only then deletes older ones."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Commit the checkpoint of this step."""
        folder = Path(str(args.output_dir))
        commit(folder / f"checkpoint-{state.global_step}")
        for old in found(folder)[:-KEPT]:
            discard(old)


def train(trainer: Trainer, name: str = "") -> None:
    """
    Train from the newest whole checkpoint in the trainer's output directory, where there is one.

    Args:
        trainer: One that keeps all of its checkpoints (`save_total_limit` None), in a directory of its own.
        name: Of what is trained, for the message after Ctrl-C.
    """
    folder = Path(str(trainer.args.output_dir))
    if folder.exists():
        sweep(folder)
    checkpoints = found(folder)
    while checkpoints and not is_whole(checkpoints[-1]):
        discard(checkpoints.pop())
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(CommitCheckpoints())
    with OrderlyStop(trainer, name):
        trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
