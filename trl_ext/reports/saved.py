# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The reports of runs by their folders: finished ones, and ones that go on or were interrupted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trl_ext.folders import EARLIER_RUN
from trl_ext.messages.places import without_places
from trl_ext.messages.redaction import redacted

from .content import DATA, Report
from .critic_plots import read_pretraining
from .interpolation import read_interpolation

__all__ = ["load_run"]

_STATE, _CONFIG = "trainer_state.json", "ppo_config.json"


def load_run(folder: str | Path) -> Report:
    """Return the report of a run from what it saved in its folder.

    That is `report_data.json`, and the log of the newest checkpoint where that one is longer: a run that goes on, or
    was interrupted, is shown up to there.

    Args:
        folder: Output directory of the run, or one of its checkpoints.

    Raises:
        ValueError: if the folder has neither, or the content cannot be read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"`{folder}` is not a folder; give the output directory of a run.")
    report = Report.load(folder) if (folder / DATA).is_file() else None
    if report is not None:
        report.interpolation = read_interpolation(folder)
    state = _newest_state(folder)
    if report is None and state is None:
        raise ValueError(
            f"`{folder}` has neither {DATA} nor a checkpoint with {_STATE}; give the output directory of a run of "
            "PPOTrainer that has saved one of them."
        )
    if report is None:
        assert state is not None
        return _with_state(Report(folder.resolve().name), *state)
    if state is None or (report.finished and not _is_newer(state[1], report.step)):
        return report
    return _with_state(_without_end(report), *state)


def _newest_state(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the Trainer's state with the most steps: of a checkpoint, also one of a stage in a folder of its own."""
    found = []
    for pattern in (_STATE, f"checkpoint-*/{_STATE}", f"*/checkpoint-*/{_STATE}"):
        for path in folder.glob(pattern):
            if path.relative_to(folder).parts[0].startswith((EARLIER_RUN, "incomplete-", ".")):
                continue
            if (state := _read(path)) is not None and isinstance(state.get("log_history"), list):
                found.append((state.get("global_step") or 0, path, state))
    # Where a supervised stage has checkpoints too, the one of PPO is meant.
    ours = [entry for entry in found if _is_ppo(entry[2]["log_history"])] or found
    return max(((path, state) for _, path, state in ours), key=lambda e: e[1].get("global_step") or 0, default=None)


def _is_newer(state: Mapping[str, Any], step: int | None) -> bool:
    return step is not None and (state.get("global_step") or 0) > step


def _without_end(report: Report) -> Report:
    """Return a report without what was measured at the end of an earlier run in the same folder."""
    summary = {k: v for k, v in (report.summary or {}).items() if k.endswith("_before") or k == "num_eval_prompts"}
    return replace(report, summary=summary, samples=(), sample_counts=None, histograms=None, measured=())


def _is_ppo(log_history: Sequence[Mapping[str, Any]]) -> bool:
    return any("kl_coef" in entry for entry in log_history if isinstance(entry, Mapping))


def _with_state(report: Report, path: Path, state: Mapping[str, Any]) -> Report:
    """Return a report with the log of a checkpoint, and with its configuration where none was saved."""
    config = report.config or _read(path.parent / _CONFIG) or {}
    history = [entry for entry in state["log_history"] if isinstance(entry, Mapping)]
    kls = [entry["kl"] for entry in history if "kl" in entry]
    late = kls[-max(1, len(kls) // 3) :]
    episodes = max((entry["episodes"] for entry in history if "episodes" in entry), default=None)
    measured = {"episodes": episodes, "kl_last_third": sum(late) / len(late) if late else None}
    step, max_steps = state.get("global_step"), state.get("max_steps")
    run = path.parent.parent if path.parent.name.startswith("checkpoint-") else path.parent
    return replace(
        report,
        log_history=history,
        critic_pretraining=read_pretraining(run, config) or report.critic_pretraining,
        summary={**(report.summary or {}), **measured},
        config=without_places(redacted(config), path.parent),
        kl_target=report.kl_target if report.kl_target is not None else config.get("kl_target"),
        step=step,
        max_steps=max_steps,
        finished=step is not None and step == max_steps and not (report.summary or {}),
    )


def _read(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is none, or where a living run is just writing it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
