# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tables of prompts, completions, rewards and advantages, in the terminal and in the loggers.

`trl.trainer.utils.print_prompt_completions_sample` is not used: it raises on a reward of None (which the contract of
reward functions allows), prints texts at full length, reads reward names as markup, draws its rows at random, and
differs between the TRL versions supported here.
"""

from __future__ import annotations

import html
import importlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import pandas as pd
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text as RichText
from torch import Tensor
from tqdm.auto import tqdm
from transformers.integrations import TensorBoardCallback

from trl_ext.messages.printable import one_line, printable
from trl_ext.text.rows import Text

_OWN_COLUMNS = ("step", "prompt", "completion", "advantage")


class SampleTable:
    """The samples of one rollout, for people to read.

    Example:
        >>> table = SampleTable(num_rows=4)
        >>> table.fill(["The sky is"], [" blue."], {"length": [1.0]}, advantages=[0.5], step=10)
        >>> table.to_rows()
        [{'step': 10, 'prompt': 'The sky is', 'completion': ' blue.', 'length': 1.0, 'advantage': 0.5}]
    """

    def __init__(self, num_rows: int | None = None) -> None:
        """Create an empty table.

        Args:
            num_rows: How many samples `print`, `to_rows` and `log_samples` show: the first ones, so that the same
                run shows the same samples. None shows all. `as_dict` always has all.

        Raises:
            ValueError: If `num_rows` is below 1.
        """
        if num_rows is not None and num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}; pass 1 or more, or None to show every sample.")
        self.num_rows = num_rows
        self.step = 0
        self._columns: dict[str, list[Any]] = {}
        self._reward_names: list[str] = []
        self._extra_names: list[str] = []

    def __len__(self) -> int:
        return len(self._columns.get("prompt", []))

    def fill(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        rewards: Mapping[str, Sequence[float | None]],
        advantages: Sequence[float | None] | None = None,
        step: int = 0,
        extra: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Replace the content by the samples of a rollout.

        Args:
            prompts: Texts or conversations, one per sample.
            completions: Texts or conversations, one per sample.
            rewards: Values of every reward function, by name; None where a function does not apply.
            advantages: One number per sample, for example the mean over its completion tokens.
            step: Optimizer step at which the samples were taken.
            extra: Further columns of one entry per sample, which reward functions gave to `log_extra`.

        Raises:
            ValueError: If a column does not have one entry per prompt.
        """
        columns: dict[str, list[Any]] = {"prompt": list(prompts), "completion": list(completions)}
        # A reward function may be called like one of the other columns.
        names = {name: f"rewards/{name}" if name in _OWN_COLUMNS else name for name in rewards}
        columns |= {names[name]: list(values) for name, values in rewards.items()}
        extra_names = {name: f"extra/{name}" if name in {*_OWN_COLUMNS, *columns} else name for name in extra or {}}
        columns |= {extra_names[name]: list(values) for name, values in (extra or {}).items()}
        if advantages is not None:
            columns["advantage"] = list(advantages)
        for name, values in columns.items():
            if len(values) != len(columns["prompt"]):
                raise ValueError(
                    f"Column {name!r} of the sample table has {len(values)} entries for {len(columns['prompt'])} "
                    "prompts; pass one entry per prompt."
                )
        self.step, self._columns, self._reward_names = step, columns, list(names.values())
        self._extra_names = list(extra_names.values())

    def as_dict(self) -> dict[str, list[Any]]:
        """Return all samples by column (`step`, `prompt`, `completion`, each reward, `advantage`), as they are."""
        return {"step": [self.step] * len(self), **self._columns}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the first `num_rows` samples, one dict each, conversations rendered as text."""
        return [self._row(index) for index in range(self._num_shown())]

    def print(self, console: Console | None = None) -> None:
        """Print the first `num_rows` samples as a table, long texts shortened in the middle.

        Args:
            console: Where to print; the standard output by default.
        """
        if not len(self):
            return
        console = console or Console()
        # Progress bars are hidden meanwhile, or their last state would stay in the middle of the table.
        with tqdm.external_write_mode(file=console.file):
            console.print(self._rich_table())

    def _num_shown(self) -> int:
        return len(self) if self.num_rows is None else min(self.num_rows, len(self))

    def _row(self, index: int) -> dict[str, Any]:
        row = {"step": self.step, **{name: values[index] for name, values in self._columns.items()}}
        return row | {name: as_text(row[name]) for name in ("prompt", "completion")}

    def _rich_table(self) -> Panel:
        table = Table(show_lines=True, expand=True, header_style="bold")
        table.add_column("Prompt", style="yellow", ratio=1, overflow="fold")
        table.add_column("Completion", style="green", ratio=1, overflow="fold")
        for name in self._extra_names:
            table.add_column(RichText(printable(name)), ratio=1, overflow="fold")
        numbers = [*self._reward_names, *(["advantage"] if "advantage" in self._columns else [])]
        for name in numbers:
            header = "Advantage" if name == "advantage" else name
            # A `RichText`, here and for prompts and completions, because rich reads a plain string as markup.
            table.add_column(RichText(printable(header)), justify="right", min_width=5, overflow="fold")
        for index in range(self._num_shown()):
            texts = [_rich_entry(self._columns[name][index]) for name in ("prompt", "completion")]
            texts += [_rich_entry(str(self._columns[name][index])) for name in self._extra_names]
            table.add_row(*texts, *(_number(self._columns[name][index]) for name in numbers))
        left_out = len(self) - self._num_shown()
        subtitle = f"{left_out} more not shown" if left_out else None
        return Panel(table, title=f"Step {self.step}", subtitle=subtitle)


def earned_most(rewards: Tensor, ids: Sequence[list[int]], tokenizer: Any, count: int = 3) -> list[str]:
    """Return for each of N completions the tokens with the largest rewards, of either sign, as a text.

    Args:
        rewards: Rewards of the tokens, (N, C).
        ids: The tokens of each completion.
        tokenizer: Decodes them.
        count: Most tokens to name.
    """
    texts = []
    for row, tokens in zip(rewards.tolist(), ids, strict=True):
        places = sorted((i for i in range(len(tokens)) if row[i]), key=lambda i: -abs(row[i]))[:count]
        texts.append(", ".join(f"{tokenizer.decode([tokens[i]])!r} {row[i]:+.2g}" for i in sorted(places)))
    return texts


def as_text(entry: Text) -> str:
    """Return a prompt or completion as one text; messages are rendered as `role: content`, one under the other."""
    if _is_conversation(entry):
        text = "\n".join(f"{message.get('role', 'message')}: {_content(message)}" for message in entry)
    else:
        text = str(entry)
    # Half an emoji, cut by a tokenizer or left over in a data set, cannot be written to any file.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def shorten(text: str, limit: int = 400) -> str:
    """Cut a long text in the middle, because prompts end with the question and completions with the stop.

    Args:
        text: Any text.
        limit: Most characters to keep, the mark in the middle not counted.
    """
    if len(text) <= limit:
        return text
    tail = limit // 3
    left_out = len(text) - limit
    return f"{text[: limit - tail].rstrip()} [… {left_out} characters …] {text[-tail:].lstrip()}"


def log_samples(table: SampleTable, report_to: Iterable[str], step: int, callbacks: Iterable[object] = ()) -> None:
    """Write the samples that `table` shows to those loggers in `report_to` that have a run going.

    Weights & Biases, Trackio, Comet and MLflow get a table, TensorBoard a text; other names are passed over.

    Args:
        table: The samples.
        report_to: `args.report_to`.
        step: Optimizer step.
        callbacks: `trainer.callback_handler.callbacks`, among which TensorBoard's has the writer of the run.
    """
    if not len(table):
        return
    loggers = set(report_to)
    frame = pd.DataFrame(table.to_rows())
    for name in ("wandb", "trackio"):
        logger = _import(name) if name in loggers else None
        if logger is not None:
            _log_frame(logger, frame, step)
    comet_ml = _import("comet_ml") if "comet_ml" in loggers else None
    if comet_ml is not None and (experiment := comet_ml.get_running_experiment()) is not None:
        experiment.log_table(filename=f"completions_{step:05d}.csv", tabular_data=frame)
    mlflow = _import("mlflow") if "mlflow" in loggers else None
    if mlflow is not None and mlflow.active_run() is not None:
        mlflow.log_table(data=frame, artifact_file=f"completions/completions_{step:05d}.json")
    if "tensorboard" in loggers:
        for callback in callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("completions", _markdown(table.to_rows()), step)


def _log_frame(logger: Any, frame: pd.DataFrame, step: int) -> None:
    if logger.__name__ == "wandb" and logger.run is None:
        return
    try:
        # The step is a metric, as in the callbacks of transformers: both loggers count their own steps.
        logger.log({"completions": logger.Table(dataframe=frame), "train/global_step": step})
    except RuntimeError as error:
        # Trackio has no public way to ask whether a run is active; it raises when none is.
        warnings.warn(f"The samples were not logged to {logger.__name__}: {one_line(error)}", stacklevel=3)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [[_markdown_cell(name) for name in rows[0]], ["---"] * len(rows[0])]
    lines += [[_markdown_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _markdown_cell(value: Any) -> str:
    text = shorten(printable(value)) if isinstance(value, str) else _number(value)
    escaped = re.sub(r"([\\`*_{}\[\]()#+.!|~-])", r"\\\1", html.escape(text, quote=False))
    return escaped.replace("\n", "<br>")


def _rich_entry(entry: Text) -> RichText:
    if not entry or not _is_conversation(entry):
        text = printable(shorten(as_text(entry)))
        return RichText(text) if text.strip() else RichText("(empty)", style="dim italic")
    lines = RichText()
    for index, message in enumerate(entry):
        lines.append("\n" * (index > 0))
        lines.append(f"{printable(str(message.get('role', 'message')))}: ", style="bold")
        lines.append(printable(shorten(_content(message))))
    return lines


def _is_conversation(entry: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(entry, list) and all(isinstance(message, dict) for message in entry)


def _content(message: Mapping[str, Any]) -> str:
    parts = [message.get("reasoning_content") or message.get("thinking")]
    content = message.get("content")
    if isinstance(content, list):
        parts += [_block(block) for block in content]
    else:
        parts.append(content)
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        parts.append(f"{function.get('name', '?')}({function.get('arguments', '')})")
    return "\n".join(str(part) for part in parts if part is not None)


def _block(block: Any) -> str:
    if not isinstance(block, dict):
        return str(block)
    return str(block["text"]) if "text" in block else f"[{block.get('type', 'block')}]"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{float(value):.2f}"
