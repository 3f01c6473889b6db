# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`Report`: everything that the page of a run shows, as plain values that are saved beside it."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from trl_ext.files import without_nan, write_json
from trl_ext.messages.places import without_places
from trl_ext.messages.redaction import redacted

__all__ = ["DATA", "Report"]

DATA = "report_data.json"


@dataclass
class Report:
    """Content of the page of a run. Parts that are missing are left out; NaN and infinite numbers are not drawn.

    Attributes:
        title: Heading of the page.
        log_history: `trainer.state.log_history`.
        summary: Numbers by name. Names that end in `_before` and `_after` are one quantity, `<name>_ci95_before` and
            `<name>_ci95_after` its intervals; see `trl_ext.evaluation.quantities`.
        thresholds: Goals by name in `summary`: `{"kl": ("<=", 1.5), "mean_length_after": (">=", 7.5)}`. A value that is
            missing or NaN has failed.
        samples: Dictionaries with `prompt`, `before`, `after` (texts or conversations), `score_before`, `score_after`,
            and `group`, one of those of `trl_ext.reports.samples`.
        sample_counts: Number of samples in each group, those not shown included.
        histograms: Scores by name, for example `{"before": [...], "after": [...]}`.
        kl_target: Target of the KL controller, in nats per completion.
        frontier: (KL, reward) pairs of the optimum.
        measured: Points for the frontier: `name`, `kl`, `reward` and, where known, the ends `low` and `high` of the
            reward's interval; `apart` where it is not on the line through the others.
        best_of_n: Rows of `trl_ext.evaluation.best_of_n`, with `judge` where a judge marked the samples.
        judge_frontier: (KL, judge's mark) pairs of the optimum; the marks of points in `measured` are `judge`,
            `judge_low` and `judge_high`.
        judge_name: Name of that mark.
        frontier_caption: Prompts and completions behind `frontier` and `measured`.
        config: Every setting that was in force.
        changed: The names of those that differ from the defaults.
        origin: `model`, `rewards` (names), `reward_weights`, `judges` (names), `command`, `commit`, `device`,
            `versions`.
        notes: One or several paragraphs of text.
        signed: Names in `summary`, without `_before`, of numbers that may be negative: no quotient is shown.
        score_name: Name of the scores of `samples` and `histograms`.
        score_better: Which scores are better.
        other_runs: Log histories of further runs to draw beside this one, by name.
        alarms: Alarms of the monitor of reward hacking by run.
        name: Name of this run beside the others.
        reward_model: What `RewardModelReport.as_dict` returned.
        interpolation: What `trl_ext interpolate` measured.
        critic_pretraining: The report of the critic's pretraining.
        step: Optimizer step at which the content was collected.
        max_steps: Optimizer steps of the whole run.
        finished: False while the run goes on, and after an interruption.
    """

    title: str
    log_history: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] | None = None
    thresholds: Mapping[str, tuple[str, float]] | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    sample_counts: Mapping[str, int] | None = None
    histograms: Mapping[str, Sequence[float]] | None = None
    kl_target: float | None = None
    frontier: Iterable[Sequence[float]] | None = None
    measured: Sequence[Mapping[str, Any]] = ()
    best_of_n: Sequence[Mapping[str, Any]] = ()
    judge_frontier: Iterable[Sequence[float]] | None = None
    judge_name: str = "judge"
    frontier_caption: str = ""
    config: Mapping[str, Any] | None = None
    changed: Collection[str] | None = None
    origin: Mapping[str, Any] | None = None
    notes: str | Sequence[str] | None = None
    signed: Collection[str] = ()
    score_name: str = "toxicity"
    score_better: Literal["lower", "higher"] = "lower"
    other_runs: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    alarms: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    name: str = "this run"
    reward_model: Mapping[str, Any] | None = None
    interpolation: Mapping[str, Any] | None = None
    critic_pretraining: Mapping[str, Any] | None = None
    step: int | None = None
    max_steps: int | None = None
    finished: bool = True

    def save(self, folder: Path) -> None:
        """Write the content into the run's folder, from which `Report.load` and `trl_ext report` read it."""
        write_json(folder / DATA, without_nan(asdict(self.cleaned(folder))))

    def cleaned(self, folder: Path) -> "Report":
        """Return a copy without secrets and without paths of the machine; texts of samples stay as they are.

        Args:
            folder: Folder of the run; paths in it become relative to it.
        """

        def clean(value: Any) -> Any:
            return without_places(redacted(value), folder)

        names = ("title", "summary", "config", "origin", "notes", "reward_model", "frontier_caption")
        return replace(self, **{name: clean(getattr(self, name)) for name in names})

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """Read what `save` wrote; entries of a later version are passed over.

        Raises:
            FileNotFoundError: if the folder has none.
            ValueError: if the file was not written by `save`.
        """
        path = folder / DATA
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})
        except (ValueError, TypeError, AttributeError):
            raise ValueError(
                f"'{path}' cannot be read as the content of a report; draw it from a checkpoint by "
                "moving that file away."
            ) from None
