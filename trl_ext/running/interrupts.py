# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Ctrl-C in a recipe: a checkpoint where one can be written, and one line that says where the run stopped."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["Interrupted", "OrderlyStop"]


class Interrupted(KeyboardInterrupt):
    """The end of an interrupted run.

    Attributes:
        where: The place, after "interrupted".
        saved: Whether a checkpoint of this place is written.
        resume: Whether the run goes on only with `--resume_from_checkpoint true`.
    """

    def __init__(self, where: str, saved: bool = False, resume: bool = False):
        super().__init__(where)
        self.where, self.saved, self.resume = where, saved, resume

    @classmethod
    def at(cls, place: str, stop: KeyboardInterrupt, resume: bool = False) -> "Interrupted":
        """Return `stop` with the larger place in which it happened."""
        inner = stop if isinstance(stop, cls) else cls("")
        return cls(
            f"{place} {inner.where}".strip() or "before or after the training", inner.saved, inner.resume or resume
        )


class OrderlyStop(TrainerCallback):
    """Saves a checkpoint after the current step at the first Ctrl-C; a second Ctrl-C ends the process at once.

    Several processes stop without a checkpoint: the launcher ends all of them before one could be written.

        with OrderlyStop(trainer):
            trainer.train()

    Args:
        trainer: The trainer, which gets this callback.
        name: Name of the model in training, for the message; empty where there is one model.

    Raises:
        Interrupted: at the end of the block, if Ctrl-C was pressed in it.
    """

    def __init__(self, trainer: Trainer, name: str = ""):
        self.trainer, self.name, self.asked, self.saved_step = trainer, name, False, -1
        self._before: Any = None
        trainer.add_callback(self)

    def __enter__(self) -> "OrderlyStop":
        heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # as it is behind `nohup`
        if threading.current_thread() is threading.main_thread() and self.trainer.args.world_size == 1 and heard:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self.asked and (error is None or isinstance(error, KeyboardInterrupt)):
            raise Interrupted(self._where(), self.saved_step == self.trainer.state.global_step) from None
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(self._where()) from None

    def _where(self) -> str:
        state = self.trainer.state
        named = f"({self.name}) " if self.name else ""
        return f"{named}at step {state.global_step} of {state.max_steps}"

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second Ctrl-C also ends code outside Python
        os.write(2, b"\r\x1b[K" if os.isatty(2) else b"\n")  # over the status line
        os.write(2, b"Ctrl-C: this step is finished and a checkpoint written; Ctrl-C again ends at once.\n")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint and for the end."""
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the step of the checkpoint."""
        self.saved_step = state.global_step
