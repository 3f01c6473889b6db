# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Summary and report of any run of `PPOTrainer`, in one call."""

import platform
import resource
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trl_ext.evaluation.intervals import bootstrap_mean
from trl_ext.evaluation.quantities import AVERAGE_NAME
from trl_ext.evaluation.scored import Scored
from trl_ext.messages.places import short_name
from trl_ext.model_card import CARD, write_model_card
from trl_ext.monitoring.metrics import finite
from trl_ext.trainer import PPOTrainer

from .by_category import category_summary
from .content import Report
from .critic_plots import read_pretraining
from .origin import origin
from .report import write_page
from .samples import sorted_samples
from .settings import settings_in_force
from .summary import write_summary
from .verdict import goals_of, verdict

__all__ = ["cost_of", "evaluated_points", "paired_change", "report_of", "report_run", "write_card", "write_run"]


def report_run(
    trainer: PPOTrainer,
    before: Scored | None = None,
    after: Scored | None = None,
    *,
    average: Scored | None = None,
    title: str = "PPO",
    seconds: Mapping[str, float] | None = None,
    options: Sequence[Any] = (),
    num_samples: int = 24,
    output_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Write `report.html`, `summary.json` and `report_data.json` of a run, on the main process alone.

    The results also go into the model card of a policy that was saved in the same folder.

    `report_run(trainer)` after `trainer.train()` is enough; with `before` and `after` the report also says what the
    training changed.

    Args:
        trainer: The trainer, after training.
        before: The initial policy, as `score_policy` measured it; None where it was not measured.
        after: The trained policy on the same prompts.
        average: The average of the policy (`policy_ema_decay`) on the same prompts, where there is one.
        title: Heading of the page.
        seconds: Duration of each phase of the script; by default what the Trainer measured.
        options: Dataclasses of the script's own options and of the model's (`ModelConfig`), for the configuration. One
            of them may have a `category_column`, a column of `trainer.eval_dataset`: the report then says which
            categories of prompts lost, by the reward and by each judge.
        num_samples: Most completions to show.
        output_dir: Folder of the files; by default `trainer.args.output_dir`.

    Returns:
        The content of `summary.json`.
    """
    report = report_of(trainer, title=title, options=options)
    summary = _rewards(before, after, trainer.args.seed, average) | cost_of(trainer, seconds or {})
    if after is not None:
        summary["kl"] = after.kl
    if average is not None:
        summary["kl_ema"] = average.kl
    column = next((name for option in options if (name := getattr(option, "category_column", None))), None)
    if column is not None and before is not None and after is not None:
        names = ["reward", *(f"judge/{name}" for name in before.judged)]
        pairs = {name: (_measured(before)[name], _measured(after)[name]) for name in names}
        summary["by_category"] = category_summary(trainer.eval_dataset[column][:], pairs, trainer.args.seed)
    report.summary = summary
    report.signed = ("reward", *(f"rewards/{name}" for name in trainer.rewards.names))
    if trainer.judging.judges is not None:
        report.signed = (*report.signed, *(f"judge/{name}" for name in trainer.judging.judges.names))
    report.score_name, report.score_better = "reward", "higher"
    if before is not None and after is not None:
        scores = before.totals, after.totals
        report.samples, report.sample_counts = sorted_samples(
            before.samples, after.samples, *scores, num_samples, "higher"
        )
        report.histograms = {name: _known(values) for name, values in zip(("before", "after"), scores, strict=True)}
        start, *ends = [_point(time, summary) for time in ("before", "after")]
        report.measured = [start | {"kl": before.kl}, *evaluated_points(trainer), *ends]
        if average is not None:
            point = _point("ema", summary)
            report.measured.append(point | {"kl": average.kl, "name": AVERAGE_NAME, "apart": True})
        report.frontier_caption = (
            f"Mean reward and KL, measured on the same {len(before.totals)} prompts before and after training, with "
            "the 95% interval of the reward; points between them are the evaluations during training."
        )
    folder, is_main = Path(output_dir or trainer.args.output_dir), trainer.is_world_process_zero()
    summary = write_run(folder, report, is_main=is_main)
    if is_main:
        write_card(folder, trainer, summary, options)
    return summary


def report_of(trainer: PPOTrainer, *, title: str, options: Sequence[Any] = (), finished: bool = True) -> Report:
    """Return what a report says of a trainer: log, configuration, origin; without samples and summary.

    Args:
        trainer: The trainer, before, during or after training.
        title: Heading of the page.
        options: Dataclasses of the script's own options and of the model's.
        finished: False before the end of the run.
    """
    args, rewards = trainer.args, trainer.rewards
    config, changed = settings_in_force(args, options)
    model = trainer.accelerator.unwrap_model(trainer.model).causal_lm
    about = {
        "model": short_name(getattr(model.config, "name_or_path", "") or type(model).__name__),
        "rewards": list(rewards.names),
        "reward_weights": rewards.weights.tolist(),
        "judges": list(trainer.judging.judges.names) if trainer.judging.judges is not None else [],
    }
    return Report(
        title,
        log_history=list(trainer.state.log_history),
        kl_target=args.kl_target,
        config=config,
        changed=changed,
        origin=about | origin(args.device, args.world_size),
        step=trainer.state.global_step,
        max_steps=trainer.state.max_steps or None,
        critic_pretraining=read_pretraining(Path(str(args.output_dir)), config) if finished else None,
        finished=finished,
    )


def write_card(folder: Path, trainer: PPOTrainer, summary: Mapping[str, Any], options: Sequence[Any]) -> None:
    """Put the results of a run into the model card in its folder, if the policy was saved there.

    Args:
        folder: Folder of the run.
        trainer: The trainer, after training.
        summary: Content of `summary.json`.
        options: The script's own options; one of them may have a `dataset_name`.
    """
    if (folder / CARD).is_file():
        names = [option.dataset_name for option in options if getattr(option, "dataset_name", None)]
        write_model_card(folder, trainer, results=summary, dataset_name=next(iter(names), None))


def write_run(folder: Path, report: Report, *, is_main: bool = True) -> dict[str, Any]:
    """Write page, data and summary of a run into its folder, on the main process; return the summary's content."""
    summary = {**(report.summary or {}), "verdict": verdict(report)}
    if report.thresholds:
        summary["goals"] = goals_of(summary, report.thresholds)
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        report.save(folder)
        write_page(folder / "report.html", report)
        write_summary(folder / "summary.json", summary)
    return summary


def cost_of(trainer: PPOTrainer, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the part of a summary on KL control, episodes, time and memory.

    Args:
        trainer: The trainer, after training.
        seconds: Duration of each phase of the script; empty for the Trainer's own measurement.
    """
    history = trainer.state.log_history
    kls = [entry["kl"] for entry in history if "kl" in entry]
    times = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    train_seconds = seconds.get("train", times[-1] if times else None)
    return {
        "kl_target": trainer.args.kl_target,
        "kl_last_third": statistics.fmean(kls[-max(1, len(kls) // 3) :]) if kls else None,
        "kl_coef": trainer.kl_controller.coef,
        "episodes": trainer.args.episodes_at(trainer.state.global_step),
        "seconds": sum(seconds.values()) if seconds else train_seconds,
        "train_seconds": train_seconds,
        "seconds_by_phase": dict(seconds),
        "peak_memory_gib": _peak_memory(trainer.args.device),
    }


def evaluated_points(trainer: PPOTrainer) -> list[dict[str, Any]]:
    """Return KL, reward and marks of the judges of each evaluation during training, for `Report.measured`."""
    names = [] if trainer.judging.judges is None else trainer.judging.judges.names
    points = []
    for entry in trainer.state.log_history:
        kl, reward = finite(entry.get("eval_kl")), finite(entry.get("eval_reward"))
        if kl is not None and reward is not None:
            judges = {name: finite(entry.get(f"eval_judge/{name}/mean")) for name in names}
            points.append({"name": "", "kl": kl, "reward": reward, "judges": judges})
    return points


def paired_change(before: Sequence[float | None], after: Sequence[float | None], seed: int) -> list[float] | None:
    """Return the ends of the 95% interval of the mean difference on the same prompts; None without any."""
    pairs = zip(before, after, strict=True)
    differences = [new - old for old, new in pairs if old is not None and new is not None]
    if not differences:
        return None
    interval = bootstrap_mean(differences, seed=seed)
    return [interval.low, interval.high]


def _rewards(before: Scored | None, after: Scored | None, seed: int, average: Scored | None = None) -> dict[str, Any]:
    """Return reward, its components and the length before and after, each with its interval; those of the average."""
    summary: dict[str, Any] = {}
    for time, scored in (("before", before), ("after", after), ("ema", average)):
        if scored is None:
            continue
        for name, values in _measured(scored).items():
            if known := _known(values):
                interval = bootstrap_mean(known, seed=seed)
                summary[f"{name}_{time}"] = interval.estimate
                summary[f"{name}_ci95_{time}"] = [interval.low, interval.high]
        summary[f"empty_fraction_{time}"] = statistics.fmean(scored.samples.empty)
        summary["num_eval_prompts"] = len(scored.totals)
    if before is not None and after is not None:
        new = _measured(after)
        for name, values in _measured(before).items():
            summary[f"{name}_change_ci95"] = paired_change(values, new[name], seed)
    return summary


def _measured(scored: Scored) -> dict[str, Sequence[float | None]]:
    components = {f"rewards/{name}": values for name, values in scored.rewards.items()}
    judged = {f"judge/{name}": values for name, values in scored.judged.items()}
    return {"reward": scored.totals, **components, **judged, "mean_length": scored.samples.lengths}


def _point(time: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    low, high = summary.get(f"reward_ci95_{time}") or (None, None)
    reward = summary.get(f"reward_{time}")
    return {"name": time, "kl": summary.get("kl"), "reward": reward, "low": low, "high": high}


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _peak_memory(device: torch.device) -> float:
    """Return the most memory that was in use, in GiB: of the GPU, or of the process without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return size / (2**30 if platform.system() == "Darwin" else 2**20)
