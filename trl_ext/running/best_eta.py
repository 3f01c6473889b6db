# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The best interpolation of a trained policy, kept as the model of its run."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_ext.actor_critic.interpolation import WeightPath
from trl_ext.evaluation.path import Task, choose, measure_path
from trl_ext.trainer import PPOTrainer

from .finished import CONFIG
from .policy import policy_of

__all__ = ["BUDGET_HELP", "ETAS_HELP", "KEPT", "UNSCALED", "check_budget", "keep_best"]

UNSCALED = "unscaled"
KEPT = ("eta", "eta_choices", "num_choice_prompts")  # what `keep_best` returns, for the summary
ETAS_HELP = (
    "Save the policy interpolated with the initial model at the best of these etas, such as 0.5 0.75 1, chosen on half "
    "of the evaluation prompts and measured on the other half."
)
BUDGET_HELP = "Most KL of the eta that `keep_best_eta` chooses, nats per completion."
_SAMPLES = 4  # completions of each prompt


def check_budget(kl_budget: float | None, etas: Sequence[float] | None) -> None:
    """Refuse a `kl_budget` without a `keep_best_eta`."""
    if kl_budget is not None and not etas:
        raise ValueError(f"`kl_budget` {kl_budget:g} needs `keep_best_eta`, the etas to choose from.")


def keep_best(
    trainer: PPOTrainer,
    etas: Sequence[float],
    kl_budget: float | None,
    columns: Mapping[str, list[Any]],
    folder: Path | None = None,
) -> dict[str, Any]:
    """Save the policy at the best eta in the place of the trained one, which goes into the subfolder `unscaled`.

    Args:
        trainer: The trainer, after training and saving; its policy stays at the chosen eta.
        etas: Places on the line from the reference (0) to the trained policy (1).
        kl_budget: Most KL in nats per completion; None for no bound.
        columns: Evaluation prompts to choose on, with the columns that the rewards read. Not to be reported on.
        folder: Where the policy was saved; None for the run's `output_dir`.

    Returns:
        For the summary: `eta`, and `eta_choices`, the measurements that it was chosen by.
    """
    folder, args = folder or Path(str(trainer.args.output_dir)), trainer.args
    model, aside = trainer.accelerator.unwrap_model(trainer.model), folder / UNSCALED
    model.save_policy(aside)
    trainer.processing_class.save_pretrained(aside)
    shutil.copyfile(folder / CONFIG, aside / CONFIG)
    path = WeightPath(model)
    count = len(next(iter(columns.values())))
    task = Task(
        policy_of(trainer),
        trainer.rewards,
        columns,
        frontier=(count, _SAMPLES),
        samples=_SAMPLES,
        missing_eos_penalty=args.missing_eos_penalty,
        prompt_column=args.prompt_column,
        seed=args.seed,
    )
    points = [point for point in measure_path(path, etas, task).points if point["eta"] in etas]
    best = choose(points, kl_budget)
    path.move_to(best["eta"])
    model.save_policy(folder)
    choices = [{name: point[name] for name in ("eta", "reward", "kl")} for point in points]
    return {"eta": best["eta"], "eta_choices": choices, "num_choice_prompts": count}
