# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How good a reward model is: `python -m eval.quality.reward_model MODEL --pairs preferences.jsonl`."""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_ext.monitoring import write_report
from trl_ext.monitoring.plots import BLUE, GREEN, GREY, Plot, add_legend, new_figure, to_svg
from trl_ext.rewards import PreferenceReward

from .bootstrap import Interval
from .cli import check_positive, make_folder
from .win_rate import wilson

DESCRIPTION = """Report on a reward model, from pairs of a chosen and a rejected answer that it was not trained on:
accuracy with a 95% interval, calibration, margins, and how much it goes by length. Writes reward_model.json and
reward_model.html."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Pairs with about the same confidence: `confidence` is its mean, `accuracy` how often it was justified."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class RewardModelReport:
    """What `describe_reward_model` measures.

    Attributes:
        accuracy: Fraction of pairs whose chosen answer scores higher, with Wilson's interval; equal scores count half.
        reliability: Pairs by confidence, the probability sigmoid(|margin|) that the model of Bradley and Terry gives
            to the answer it prefers.
        ece: Expected calibration error, mean over pairs of |accuracy - confidence| of their bin (Guo et al. 2017).
        nll: Mean of -log sigmoid(margin), the loss that reward models are trained with; log 2 for guessing.
        margin_mean, margin_std: Of chosen minus rejected.
        margin_counts, margin_edges: Their histogram: H counts and H + 1 edges.
        length_correlation: Pearson's, of score and length, over all answers.
        margin_length_correlation: The same of margin and difference in length, in which the prompt plays no part.
        accuracy_by_length: Accuracy where the chosen answer is "longer", "shorter" or equally long ("equal").
        chosen_longer: Fraction of pairs whose chosen answer is longer; always preferring the longer one is right as
            often.
    """

    pairs: int
    accuracy: Interval
    reliability: list[Bin]
    ece: float
    nll: float
    margin_mean: float
    margin_std: float
    margin_counts: list[int]
    margin_edges: list[float]
    length_correlation: float
    margin_length_correlation: float
    accuracy_by_length: dict[str, Interval]
    chosen_longer: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: None instead."""
        return _without_nan(asdict(self))


def describe_reward_model(
    chosen: list[float],
    rejected: list[float],
    chosen_lengths: list[int],
    rejected_lengths: list[int],
    *,
    bins: int = 10,
) -> RewardModelReport:
    """Measure a reward model on N pairs.

    Args:
        chosen, rejected: Its scores, shape (N,).
        chosen_lengths, rejected_lengths: Tokens of the answers, shape (N,).
        bins: Of the reliability data, equally wide between confidence 1/2 and 1.

    Raises:
        ValueError: no pair, lists of different lengths, or a score that is not finite.
    """
    better, worse = np.asarray(chosen, dtype=float), np.asarray(rejected, dtype=float)
    lengths, worse_lengths = np.asarray(chosen_lengths, dtype=float), np.asarray(rejected_lengths, dtype=float)
    sizes = {len(values) for values in (better, worse, lengths, worse_lengths)}
    if len(sizes) != 1 or sizes == {0} or not np.isfinite([*better, *worse]).all():
        raise ValueError(f"Got lists of {sorted(sizes)} scores and lengths; give one finite score and length a side.")
    margins, longer = better - worse, lengths - worse_lengths
    right = np.where(margins == 0, 0.5, (margins > 0).astype(float))
    reliability, ece = _reliability(np.abs(margins), right, bins)
    counts, edges = np.histogram(margins, bins=30)
    groups = {"longer": longer > 0, "shorter": longer < 0, "equal": longer == 0}
    return RewardModelReport(
        pairs=len(margins),
        accuracy=wilson(right.sum(), len(right)),
        reliability=reliability,
        ece=ece,
        nll=float(np.logaddexp(0, -margins).mean()),
        margin_mean=float(margins.mean()),
        margin_std=float(margins.std()),
        margin_counts=counts.tolist(),
        margin_edges=edges.tolist(),
        length_correlation=_correlation(np.concatenate([better, worse]), np.concatenate([lengths, worse_lengths])),
        margin_length_correlation=_correlation(margins, longer),
        accuracy_by_length={name: wilson(right[where].sum(), int(where.sum())) for name, where in groups.items()},
        chosen_longer=float((longer > 0).mean()),
    )


def _reliability(sureness: Array, right: Array, bins: int) -> tuple[list[Bin], float]:
    confidence = 1 / (1 + np.exp(-sureness))
    places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    found = [
        Bin(float(confidence[places == i].mean()), float(right[places == i].mean()), int((places == i).sum()))
        for i in np.unique(places)
    ]
    return found, sum(one.count * abs(one.accuracy - one.confidence) for one in found) / len(right)


def _correlation(one: Array, other: Array) -> float:
    spread = one.std() * other.std()
    return float(((one - one.mean()) * (other - other.mean())).mean() / spread) if spread > 0 else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reward_model_plots(report: RewardModelReport) -> list[Plot]:
    """The reliability diagram and the histogram of margins, for `write_report(extra_plots=...)`."""
    figure, axes = new_figure("confidence", "accuracy")
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1.2, label="calibrated")
    points = [(one.confidence, one.accuracy) for one in report.reliability]
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o", markersize=4, linewidth=1.4, label="this model")
    add_legend(axes)
    rate = report.accuracy
    caption = f"Accuracy {rate.estimate:.1%} [{rate.low:.1%}, {rate.high:.1%}], calibration error {report.ece:.3f}."
    reliability = Plot("reliability", "Calibration of the reward model", to_svg(figure, "reliability"), caption)
    figure, axes = new_figure("score of the chosen minus score of the rejected answer", "pairs")
    axes.stairs(report.margin_counts, report.margin_edges, color=GREEN, fill=True, alpha=0.4)
    axes.axvline(0, color=GREY, linewidth=1.2, linestyle="--")
    caption = f"Mean {report.margin_mean:.3g}, standard deviation {report.margin_std:.3g}."
    return [reliability, Plot("margins", "Margins of the reward model", to_svg(figure, "margins"), caption)]


# Command line


def read_pairs(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The first rows of a JSON-lines file with `chosen` and `rejected`, and perhaps `prompt`: texts or conversations.

    Raises:
        ValueError: no such file, a line that is no JSON object, a row without one of the sides, with identical sides
            or with text and conversation mixed, or no row.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()][:limit]
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read as JSON lines ({error}).") from error
    if not rows:
        raise ValueError(f"'{path}' is empty; give at least one pair.")
    for number, row in enumerate(rows, start=1):
        sides = [row.get(side) if isinstance(row, dict) else None for side in ("chosen", "rejected")]
        if not all(sides):
            missing = "chosen" if not sides[0] else "rejected"
            raise ValueError(f"Row {number} of '{path}' has no '{missing}'; a preference has two sides.")
        if sides[0] == sides[1]:
            raise ValueError(f"Row {number} of '{path}' has identical sides, which prefers nothing; remove it.")
        kinds = {type(part) for part in (*sides, row.get("prompt") or sides[0])}
        if len(kinds) != 1 or not kinds <= {str, list}:
            raise ValueError(f"Row {number} of '{path}' mixes texts and lists of messages; use one kind.")
    return rows


def evaluate_reward_model(reward: PreferenceReward, rows: list[dict[str, Any]]) -> RewardModelReport:
    """Score both sides of every row with a reward model and describe it; lengths are in the model's own tokens."""
    scores, lengths = {}, {}
    for side in ("chosen", "rejected"):
        empty: Any = "" if isinstance(rows[0][side], str) else []
        prompts = [row.get("prompt") or empty for row in rows]
        completions = [row[side] for row in rows]
        scores[side] = reward.scores(prompts, completions)
        texts = [c if isinstance(c, str) else "\n".join(str(m.get("content", "")) for m in c) for c in completions]
        lengths[side] = [len(ids) for ids in reward.scorer.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return describe_reward_model(scores["chosen"], scores["rejected"], lengths["chosen"], lengths["rejected"])


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m eval.quality.reward_model", description=DESCRIPTION)
    parser.add_argument("model", help="sequence classifier with one label: hub id or folder")
    parser.add_argument("--pairs", required=True, help="JSON lines with chosen, rejected and perhaps prompt")
    parser.add_argument("--num_pairs", type=int, help="the first so many (all)")
    parser.add_argument("--batch_size", type=int, default=32, help="texts scored at a time (32)")
    parser.add_argument("--append_eos", action="store_true", help="end plain texts with EOS, as RewardTrainer does")
    parser.add_argument("--output", default="quality", help="folder for the report (quality)")
    arguments = parser.parse_args(argv)
    try:
        check_positive(arguments, "batch_size", *(["num_pairs"] if arguments.num_pairs is not None else []))
        rows = read_pairs(Path(arguments.pairs), arguments.num_pairs)
        make_folder(Path(arguments.output))
        reward = PreferenceReward(arguments.model, batch_size=arguments.batch_size, append_eos=arguments.append_eos)
        report = evaluate_reward_model(reward, rows)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder, rate = Path(arguments.output), report.accuracy
    results = {"settings": vars(arguments), **report.as_dict()}
    (folder / "reward_model.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    _write_page(folder / "reward_model.html", arguments.model, report)
    print(
        f"accuracy {rate.estimate:.3f} [{rate.low:.3f}, {rate.high:.3f}] on {report.pairs} pairs, ece {report.ece:.3f}"
    )
    print(folder / "reward_model.json")
    return 0


def _write_page(path: Path, model: str, report: RewardModelReport) -> None:
    names = ("pairs", "ece", "nll", "length_correlation", "margin_length_correlation", "chosen_longer")
    summary = {"accuracy": report.accuracy.estimate} | {name: getattr(report, name) for name in names}
    write_report(path, title=f"Reward model {model}", summary=summary, extra_plots=reward_model_plots(report))


if __name__ == "__main__":
    sys.exit(main())
