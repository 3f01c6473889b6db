# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Callbacks that show a run to people and write its whole log into a file."""

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers import trainer as hf_trainer

from trl_ext.files import without_nan, write_text

from .console import CONSOLE, Activity, line_width
from .run_lines import Position, line_of

__all__ = ["LOG_FILE", "LogFile", "RunDisplay", "show"]

LOG_FILE = "log.jsonl"


class RunDisplay(TrainerCallback):
    """Writes one short line for each entry of the log, and shows the step of the training in the status line.

    Args:
        name: Name of the training, where a program has several; the lines begin with it.
        kl_target: KL that the controller holds, if it holds one.
    """

    def __init__(self, name: str = "", kl_target: float | None = None):
        self.name, self.kl_target = name, kl_target
        self._training: Activity | None = None
        self._begin: tuple[int, float] | None = None  # step and time

    @contextmanager
    def training(self, *, enabled: bool, bars: bool) -> Iterator[None]:
        """Show a training during a block, whatever becomes of it.

        Args:
            enabled: Whether this process shows anything.
            bars: As in [`Console.activity`].
        """
        if not enabled:
            yield
            return
        words = f"training {self.name}".rstrip()
        with CONSOLE.activity(words, bars=bars, long=True) as self._training:
            try:
                yield
            finally:
                self._training, self._begin = None, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count steps, at the step of the checkpoint where a run goes on."""
        self._begin = (state.global_step, time.monotonic())
        if state.global_step > 0 and state.is_world_process_zero:
            CONSOLE.write(f"{self.name}  Resuming from checkpoint-{state.global_step}.".lstrip())
        if self._training is not None:
            self._training.name = f"{self.name} step".lstrip()
            self._training.total, self._training.done = state.max_steps, state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step."""
        if self._training is not None:
            self._training.done = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write a line."""
        if not state.is_world_process_zero or not logs:
            return
        left = None
        if self._begin is not None and state.global_step > self._begin[0]:
            per_step = (time.monotonic() - self._begin[1]) / (state.global_step - self._begin[0])
            left = per_step * (state.max_steps - state.global_step)
        at = Position(state.global_step, max(state.max_steps, 0), left, self.kl_target)
        shown = {name: value for name, value in logs.items() if name != "total_flos"}
        name = f"{self.name}  " if self.name else ""
        width = line_width()
        CONSOLE.write(name + line_of(shown, at, None if width is None else width - len(name)))


class LogFile(TrainerCallback):
    """Appends every entry of the log, whole, to `log.jsonl` in the output directory.

    Where a training begins the file is written anew from the history of its state, which a checkpoint holds: a resumed
    run has each entry once. NaN and infinity are null.
    """

    def __init__(self) -> None:
        self._before: list[dict[str, Any]] = []  # entries of evaluations outside of a training
        self._in_training = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what came before, and say where the file is."""
        if not state.is_world_process_zero:
            return
        self._in_training = True
        path = Path(args.output_dir) / LOG_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = [entry for entry in self._before if entry["step"] <= state.global_step]
        entries = sorted([*earlier, *state.log_history], key=lambda entry: entry["step"])
        write_text(path, "".join(map(_json_line, entries)))
        CONSOLE.write(f"All metrics of each line are in {path}.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last step, whatever `logging_steps` is: the end of a run is what one asks about."""
        if state.global_step >= state.max_steps and args.logging_strategy != "no":
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last step of a training that ends early: whatever asks for that has done so by now."""
        if control.should_training_stop and args.logging_strategy != "no":
            control.should_log = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what follows for the beginning of another training."""
        self._in_training, self._before = False, []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Append an entry."""
        if not state.is_world_process_zero or not logs:
            return
        entry = {**logs, "step": state.global_step}
        if not self._in_training:
            self._before.append(entry)
        path = Path(args.output_dir) / LOG_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(_json_line(entry))


def show(trainer: Trainer, name: str = "", *, kl_target: float | None = None) -> RunDisplay:
    """Put a [`RunDisplay`] in the place of the display that the Trainer has chosen itself, and return it.

    A progress callback that the user has given stays, and nothing takes its place.

    Args:
        trainer: A trainer that was just made.
        name, kl_target: As in [`RunDisplay`].
    """
    # Without an accelerator the setting is without effect, and every evaluation would warn of it again.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator")
    chosen = PrinterCallback if trainer.args.disable_tqdm else hf_trainer.DEFAULT_PROGRESS_CALLBACK
    kinds = (PrinterCallback, ProgressCallback, chosen)
    displays = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds)]
    display = RunDisplay(name, kl_target)
    if displays:
        trainer.remove_callback(displays[-1])  # the Trainer's own is added last
    if len(displays) <= 1:
        trainer.add_callback(display)
    return display


def _json_line(entry: dict[str, Any]) -> str:
    return json.dumps(without_nan(entry), default=str) + "\n"
