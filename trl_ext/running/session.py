# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The course of a recipe with one trainer: a folder of its own, a start or a resume, training, an orderly end."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from trl_ext.checkpoint import checkpoints
from trl_ext.config import PPOConfig
from trl_ext.processes import leave
from trl_ext.trainer import PPOTrainer

from .cli import check_launch, check_output_dir, newest_checkpoint
from .folders import locked, set_aside_run
from .interrupts import Interrupted, OrderlyStop

__all__ = ["output_folder", "started", "train"]


@contextmanager
def output_folder(args: PPOConfig) -> Iterator[str | None]:
    """Make the output folder, and keep other runs out of it; its absolute path becomes `args.output_dir`.

    Processes that come to the end of the block leave each other there.

    Yields:
        The checkpoint to go on from; None for a new run.

    Raises:
        ValueError: the folder cannot be written, another run works in it, the launch does not fit, or there is no such
            checkpoint.
    """
    check_launch(args)
    folder = check_output_dir(args.output_dir)
    args.output_dir = str(folder)
    with locked(folder) if args.process_index == 0 else nullcontext():
        with args.main_process_first(desc="checkpoint"):
            checkpoint = newest_checkpoint(args.resume_from_checkpoint, folder)
        yield checkpoint
    leave()


@contextmanager
def started(args: PPOConfig, checkpoint: str | None) -> Iterator[None]:
    """Set an earlier run in the output folder aside unless this one goes on from it, and work.

    Raises:
        Interrupted: Ctrl-C was pressed; it says whether the run can go on from a checkpoint.
    """
    folder = Path(str(args.output_dir))
    if checkpoint is None and args.process_index == 0 and (aside := set_aside_run(folder)) is not None:
        print(f"The earlier run in '{folder}' is now in '{aside}'.")
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted.at("", stop, resume=bool(checkpoints(folder))) from None


def train(trainer: PPOTrainer, checkpoint: str | None) -> None:
    """Train, from a checkpoint if there is one, and save the model into the output folder.

    Raises:
        Interrupted: Ctrl-C was pressed; the step is finished and a checkpoint written.
    """
    with OrderlyStop(trainer):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(trainer.args.output_dir)
