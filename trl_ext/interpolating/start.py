# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The command that interpolates: write one model, or measure a whole path, print it, save it and draw it."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from trl_ext.actor_critic.interpolation import WeightPath
from trl_ext.evaluation.path import PathResult, Task, measure_path
from trl_ext.files import without_nan, write_json
from trl_ext.messages.notes import tell, telling_warnings
from trl_ext.reports.content import DATA
from trl_ext.reports.interpolation import PATH_FILE
from trl_ext.reports.report import write_page
from trl_ext.reports.saved import load_run
from trl_ext.running.bars import without_bars
from trl_ext.running.named_rewards import warn_of_training_reward
from trl_ext.running.records import Reopened, read_record
from trl_ext.running.trained import find_trained

from .request import SAMPLING, Request, prepare
from .showing import print_points
from .writing import check_output, write_model

__all__ = ["DEFAULT_ETAS", "run"]

DEFAULT_ETAS = (0.25, 0.5, 0.75, 1.0)
Reopen = Callable[..., Reopened]


def run(
    folder: str, eta: Sequence[float] | None, output: str | None, json_file: str | None, reopen: Reopen, **options: Any
) -> None:
    """Write the model at one eta (`output`), or measure the policy at several.

    Args:
        folder: Output directory of a run, or the folder of any trained policy.
        eta: Places on the line from the reference (0) to the trained policy (1); None for the usual ones.
        output: Folder for the model at one eta; None to measure.
        json_file: File of the measurements; None for one in `folder`.
        reopen: `reopen(recipe, folder, **changes)` returns a recorded run with its own settings.
        options: Those of the command line that say what is measured and how models are loaded.

    Raises:
        ValueError, TypeError, RuntimeError, ImportError, OSError: for anything that cannot be used.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"'{folder}' is not a folder; give the output directory of a run, or a policy's folder.")
    etas = _checked(DEFAULT_ETAS if eta is None else eta)
    record = read_record(root)
    policy = root if record is None else root / record["model"]
    if not sys.stderr.isatty():
        without_bars()
    request = _request(options)
    if output is not None:
        _write(policy, etas, eta is None, request, Path(output).expanduser())
        return
    own = None
    if record is not None and not (request.prompts and request.rewards):

        def own(**changes: Any) -> Reopened:
            return reopen(record["recipe"], root, **changes)

    path = root / PATH_FILE if json_file is None else Path(json_file).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"`--json {path}` is a folder; give a file.")
    with telling_warnings():
        if request.judge is not None:
            warn_of_training_reward("judge", request.judge, root)
        if request.toxicity_model is not None:
            warn_of_training_reward("toxicity_model", f"toxicity:{request.toxicity_model}", root)
        model, task = prepare(request, policy, own)
        _measure(WeightPath(model), etas, task, root, path, str(policy))
    print(path)


def _measure(weights: WeightPath, etas: Sequence[float], task: Task, root: Path, path: Path, name: str) -> None:
    """Measure; what is measured is printed and saved also after Ctrl-C."""
    found: list[PathResult] = []
    try:
        found = [measure_path(weights, etas, task, on_point=lambda result: found.__setitem__(slice(None), [result]))]
    finally:
        if found:
            points, optimum = found[0]
            count = len(next(iter(task.columns.values())))
            few = task.frontier[0]
            whose = f"{count} prompts" + (f", for reward and KL {few} of them" if 0 < few < count else "")
            settings = {"prompts": count, "frontier": list(task.frontier), "samples": task.samples, "seed": task.seed}
            content = {"points": points, "optimum": optimum, "settings": settings}
            write_json(path, without_nan(content))
            print_points(points, Console(), title=f"{name}: reference + eta * (trained - reference), {whose}")
            if path == root / PATH_FILE and (root / DATA).is_file():
                print(write_page(root / "report.html", load_run(root)))


def _write(policy: Path, etas: Sequence[float], by_default: bool, request: Request, output: Path) -> None:
    if by_default or len(etas) != 1:
        raise ValueError("`--output` takes the model at one eta; give one, such as `--eta 0.75`.")
    if request.prompts or request.rewards or request.toxicity_model or request.judge:
        raise ValueError("`--output` writes a model and measures nothing; leave out prompts, rewards and judge.")
    check_output(output)
    with telling_warnings():
        write_model(find_trained(str(policy), **request.loading), etas[0], output)
    print(output)


def _checked(etas: Sequence[float]) -> list[float]:
    for eta in etas:
        if not 0 <= eta < math.inf:
            raise ValueError(f"`--eta` is {eta:g}; give 0, which is the reference, or more; 1 is the trained policy.")
    if max(etas) > 1:
        tell("An eta above 1 goes beyond the trained policy: nothing was trained there.")
    return sorted(set(etas))


def _request(options: dict[str, Any]) -> Request:
    sampling = {name: options.pop(name) for name in SAMPLING}
    loading = {name: options.pop(name) for name in ("reference", "base_model", "dtype", "device", "trust_remote_code")}
    frontier = options.pop("frontier_prompts"), options.pop("frontier_samples")
    rewards = options.pop("reward")
    return Request(**options, rewards=rewards, frontier=frontier, sampling=sampling, loading=loading)
