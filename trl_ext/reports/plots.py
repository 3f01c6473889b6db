# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The plots of what one or several runs logged: rewards by component, KL, and the state of policy and critic."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from trl_ext.evaluation.quantities import AVERAGE_NAME, number_text
from trl_ext.monitoring.glossary import find, label_of
from trl_ext.monitoring.metrics import finite
from trl_ext.monitoring.samples import shorten

from .drawing import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    SERIES,
    LogHistory,
    Plot,
    add_legend,
    count_axis,
    draw_line,
    moving_average,
    new_figure,
    positions,
    series,
    series_label,
    to_svg,
    value_range,
)

_KL_TOLERANCE = 0.25
_LEAST_KL = 0.5  # nats: a KL of 0.01 is drawn near the bottom
_COMPONENT = re.compile(r"rewards/(.+)/mean")
_JUDGE = re.compile(r"eval_(.+_)?judge/(.+)/mean")
_PHASES = {"generate": BLUE, "score": ORANGE, "evaluate": GREEN, "critic": SERIES[4], "learn": SERIES[3]}
_NOT_ALWAYS = ("critic",)  # phases that only some runs have
Runs = Mapping[str, LogHistory]


class _Panel(NamedTuple):
    """One metric over the run.

    Attributes:
        slug: Identifier of the plot.
        key: Name in the log.
        least_top: The vertical axis begins at 0 and ends there or higher.
        y_range: Its ends, for a metric with limits of its own.
    """

    slug: str
    key: str
    least_top: float = 0.0
    y_range: tuple[float, float] | None = None


_PANELS = (
    _Panel("kl-coef", "kl_coef"),
    _Panel("length", "completions/mean_length"),
    _Panel("entropy", "entropy"),
    _Panel("terminated", "completions/terminated_fraction", y_range=(0, 1.03)),
    _Panel("explained-variance", "explained_variance", y_range=(-1.05, 1.05)),
    _Panel("explained-variance-held-out", "explained_variance/held_out", y_range=(-1.05, 1.05)),
    _Panel("value-loss", "value_loss"),
    _Panel("clip-fraction", "clip_fraction", least_top=0.3),
    _Panel("approx-kl", "approx_kl", least_top=0.02),
    _Panel("skipped", "skipped_minibatches", y_range=(0, 1.03)),
    _Panel("grad-norm", "grad_norm"),
    _Panel("learning-rate", "learning_rate"),
    _Panel("memory", "memory/peak_gib"),
    _Panel("speed", "tokens_per_second"),
)


def training_plots(
    log_history: LogHistory | Runs,
    kl_target: float | None = None,
    weights: Mapping[str, float] | None = None,
    steps_per_rollout: int = 1,
) -> list[Plot]:
    """Draw what was logged during training, over episodes if they were logged and over optimizer steps otherwise.

    Args:
        log_history: `trainer.state.log_history` of one run, or those of several by name. A plot whose keys are all
            missing is left out.
        kl_target: Target of the KL controller, in nats per completion.
        weights: Weights of the reward functions by name, where not all are 1.
        steps_per_rollout: Optimizer steps on each rollout, for the time by phase.

    Returns:
        The plots for which there are data: `reward`, `judge`, `kl`, `kl-coef`, `length`, `entropy`, `terminated`,
        `explained-variance`, `explained-variance-held-out`,
        `value-loss`, `clip-fraction`, `approx-kl`, `skipped`, `grad-norm`, `learning-rate`,
        `memory`, `speed`, `time`; of several runs all but the last.
    """
    runs = log_history if isinstance(log_history, Mapping) else {"": log_history}
    plots = [_reward_plot(runs, weights or {}), _judge_plot(runs), _kl_plot(runs, kl_target)]
    plots += [_panel_plot(panel, runs) for panel in _PANELS]
    if len(runs) == 1:
        plots.append(_time_plot(next(iter(runs.values())), steps_per_rollout))
    return [plot for plot in plots if plot is not None]


def _reward_plot(runs: Runs, weights: Mapping[str, float]) -> Plot | None:
    if len(runs) > 1:
        return _panel_plot(_Panel("reward", "reward"), runs, title="Reward")
    history = next(iter(runs.values()))
    at, x_label = positions(history)
    x, reward = series(history, at, "reward")
    if not len(x):
        return None
    # In the order of the weights, because JSON does not keep that of the log.
    keys = dict.fromkeys(
        f"rewards/{name}/mean" for name in weights if any(f"rewards/{name}/mean" in e for e in history)
    )
    keys |= dict.fromkeys(key for entry in history for key in entry if _COMPONENT.fullmatch(key))
    figure, axes = new_figure(x_label, "reward")
    spread = np.concatenate([series(history, at, "reward_std")[1], [0.0]]).max()
    drawn, captions = [reward], []
    if len(keys) > 1:
        colors = itertools.cycle(zip(SERIES[1:], DASHES[1:] * 2, strict=False))
        for key, (color, style) in zip(keys, colors, strict=False):
            name = _COMPONENT.fullmatch(key)[1]  # type: ignore[index]
            weight = weights.get(name, 1.0)
            at_x, values = series(history, at, key)
            if len(values):
                label = name if weight == 1 else f"{weight:g} × {name}"
                draw_line(axes, at_x, weight * values, series_label(label), color, style)
                drawn.append(weight * values)
                captions.append(f"{shorten(label, 60)}: {_course(weight * values)}")
    draw_line(axes, x, reward, "weighted sum" if len(keys) > 1 else "mean")
    if len(keys) <= 1:
        _spread_band(axes, history, at)
    drawn.append(_evaluations(axes, history, at, "reward"))
    # Less than the spread within one rollout is a small change.
    axes.set_ylim(*value_range(np.concatenate(drawn), 2 * spread))
    count_axis(axes, x[-1])
    add_legend(axes)
    captions.insert(0, f"Reward: {_course(reward)}")
    title = "Reward by component" if len(keys) > 1 else "Reward"
    return Plot("reward", title, to_svg(figure, "reward"), f"{'; '.join(captions)}.", _healthy("reward"))


def _judge_plot(runs: Runs) -> Plot | None:
    """Draw the judges of the evaluations, which the policy never learns from."""
    lines: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, history in runs.items():
        at, x_label = positions(history)
        for key in dict.fromkeys(key for entry in history for key in entry):
            if (found := _JUDGE.fullmatch(key)) is not None:
                lines[f"{f'{name}: ' * bool(name)}{found[2]}{_what_was_judged(found[1])}"] = series(history, at, key)
    lines = {label: line for label, line in lines.items() if len(line[0])}
    if not lines:
        return None
    figure, axes = new_figure(x_label, "judge")
    styles = itertools.cycle(zip(SERIES, DASHES, strict=False))
    for (label, (x, y)), (color, style) in zip(lines.items(), styles, strict=False):
        axes.plot(x, y, color=color, linestyle=style, marker="D", markersize=4, label=series_label(label))
    axes.set_ylim(*value_range(np.concatenate([y for _, y in lines.values()])))
    count_axis(axes, max(x[-1] for x, _ in lines.values()))
    add_legend(axes)
    caption = "; ".join(f"{label}: {_course(y)}" for label, (_, y) in lines.items())
    healthy = _healthy("judge/*/mean")
    return Plot("judge", "Judges at evaluation, never trained on", to_svg(figure, "judge"), f"{caption}.", healthy)


def _what_was_judged(prefix: str | None) -> str:
    """Return data set and policy of an evaluation, in parentheses, from its prefix: "ema_", "long_prompts_ema_"."""
    names = (prefix or "").rstrip("_")
    dataset, found, _ = f"_{names}_".partition("_ema_")
    words = [dataset.strip("_"), *([AVERAGE_NAME] if found else [])]
    return f" ({', '.join(filter(None, words))})" if names else ""


def _spread_band(axes: Axes, history: LogHistory, at: Sequence[float]) -> None:
    rows = [(p, finite(e.get("reward")), finite(e.get("reward_std"))) for p, e in zip(at, history, strict=True)]
    band = np.array([row for row in rows if None not in row], dtype=float).reshape(-1, 3)
    if len(band) > 1:
        x, middle, spread = band.T
        low, high = moving_average(middle - spread), moving_average(middle + spread)
        axes.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0, label="one standard deviation")


def _kl_plot(runs: Runs, kl_target: float | None) -> Plot | None:
    target = finite(kl_target)
    found = {name: series(history, positions(history)[0], "kl") for name, history in runs.items()}
    found = {name: (x, kl) for name, (x, kl) in found.items() if len(x)}
    if not found:
        return None
    figure, axes = new_figure(positions(next(iter(runs.values())))[1], "nats per completion")
    top, end, captions = [_LEAST_KL], max(x[-1] for x, _ in found.values()), []
    if target is not None:
        low, high = (1 - _KL_TOLERANCE) * target, (1 + _KL_TOLERANCE) * target
        axes.axhline(target, color=ORANGE if len(runs) == 1 else GREY, linewidth=1.2, linestyle="--", label="target")
        top.append(high)
    for (name, (x, kl)), color in zip(found.items(), itertools.cycle(SERIES), strict=False):
        draw_line(axes, x, kl, series_label(name) or "measured", color)
        top.append(kl.max())
        late = kl[x >= x[0] + (x[-1] - x[0]) * 2 / 3]
        caption = f"Over the last third the mean KL is {late.mean():.3g} nats"
        if target is not None and len(late) < 2:
            caption += f" against a target of {target:.3g}; one measurement is too few to judge by"
        elif target is not None:
            inside = np.mean((late >= low) & (late <= high))
            caption += (
                f" against a target of {target:.3g}; {inside:.0%} of the measurements lie within {_KL_TOLERANCE:.0%} "
                "of it"
            )
        captions.append(f"{name}: {caption[0].lower()}{caption[1:]}." if name else f"{caption}.")
    if target is not None and len(runs) == 1:
        begin = x[0] + (x[-1] - x[0]) * 2 / 3
        label = f"within {_KL_TOLERANCE:.0%}, last third"
        axes.fill_between([begin, x[-1]], low, high, color=ORANGE, alpha=0.2, linewidth=0, label=label)
    if len(runs) == 1:
        history = next(iter(runs.values()))
        top.extend(_evaluations(axes, history, positions(history)[0], "kl"))
    lowest = min(kl.min() for _, kl in found.values())
    axes.set_ylim(*value_range([lowest, *top], zero=True))
    count_axis(axes, end)
    add_legend(axes)
    return Plot("kl", _title("kl"), to_svg(figure, "kl"), " ".join(captions), _healthy("kl"))


def _panel_plot(panel: _Panel, runs: Runs, title: str | None = None) -> Plot | None:
    found = {name: series(history, positions(history)[0], panel.key) for name, history in runs.items()}
    found = {name: (x, y) for name, (x, y) in found.items() if len(x)}
    if not found:
        return None
    metric = find(panel.key)
    unit = "" if metric is None else metric.unit.partition(" (")[0]  # the axis has no room for a remark
    figure, axes = new_figure(positions(next(iter(runs.values())))[1], unit)
    drawn = []
    for (name, (x, y)), color in zip(found.items(), itertools.cycle(SERIES), strict=False):
        draw_line(axes, x, y, series_label(name) or "training", color)
        drawn.append(y)
    if len(runs) == 1:
        history = next(iter(runs.values()))
        drawn.append(_evaluations(axes, history, positions(history)[0], panel.key))
    together = np.concatenate(drawn)
    if panel.y_range is not None:
        low, high = panel.y_range
        # A critic worse than -1 is off the chart; its exact badness would flatten the part that matters.
        axes.set_ylim(max(low, min(together.min(), 0) - 0.05), max(high, min(together.max(), 2 * high)))
    else:
        axes.set_ylim(*value_range(together, panel.least_top, zero=panel.slug != "reward"))
    # Without the factor above the axis ("1e-4"), where the legend stands.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    count_axis(axes, max(x[-1] for x, _ in found.values()))
    if len(axes.get_legend_handles_labels()[1]) > 1:
        add_legend(axes)
    captions = [f"{name}: {_course(y)}" if name else _course(y).capitalize() for name, (_, y) in found.items()]
    drawing = to_svg(figure, panel.slug)
    return Plot(panel.slug, title or _title(panel.key), drawing, f"{'; '.join(captions)}.", _healthy(panel.key))


def _time_plot(history: LogHistory, steps_per_rollout: int) -> Plot | None:
    at, x_label = positions(history)
    timed = any(finite(entry.get(f"time/{phase}")) is not None for phase in _NOT_ALWAYS for entry in history)
    colors = {phase: color for phase, color in _PHASES.items() if timed or phase not in _NOT_ALWAYS}
    rows = []
    for place, entry in zip(at, history, strict=True):
        seconds = [finite(entry.get(f"time/{phase}")) for phase in colors]
        if None not in seconds:
            rows.append([place, *seconds])
    if not rows:
        return None
    x, *phases = list(np.array(rows, dtype=float).T)
    phases[-1] = phases[-1] * steps_per_rollout  # it is logged for an optimizer step, the others for a rollout
    figure, axes = new_figure(x_label, "seconds per rollout")
    if len(x) == 1:
        x, phases = np.array([0.0, x[0]]), [np.repeat(values, 2) for values in phases]
    labels = [label_of(f"time/{phase}").removeprefix("time for ") for phase in colors]
    axes.stackplot(x, phases, labels=labels, colors=list(colors.values()), alpha=0.55, linewidth=0)
    axes.set_ylim(0, max(np.sum(phases, axis=0).max() * 1.08, 1e-9))
    count_axis(axes, x[-1])
    add_legend(axes)
    whole = max(sum(values.sum() for values in phases), 1e-12)
    shares = [f"{label} {values.sum() / whole:.0%}" for label, values in zip(labels, phases, strict=True)]
    healthy = "Sampling usually takes the largest part."
    return Plot("time", "Time by phase", to_svg(figure, "time"), f"{', '.join(shares).capitalize()}.", healthy)


def _evaluations(axes: Axes, history: LogHistory, at: Sequence[float], key: str) -> np.ndarray:
    x, y = series(history, at, f"eval_{key}")
    if len(x):
        axes.plot(x, y, color=GREEN, linestyle="none", marker="D", markersize=4, label="evaluation")
    return y


def _course(values: np.ndarray) -> str:
    """Return first and last value; of many points the means of their first and last twentieth."""
    if len(values) == 1:
        return f"{number_text(float(values[0]))} in the only line of the log"
    ends = max(1, len(values) // 20)
    first, last = float(values[:ends].mean()), float(values[-ends:].mean())
    return f"from {number_text(first)} to {number_text(last)}"


def _title(key: str) -> str:
    label = label_of(key)
    return label[:1].upper() + label[1:]


def _healthy(key: str) -> str:
    metric = find(key)
    return "" if metric is None else metric.healthy
