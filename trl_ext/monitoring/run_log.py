# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`RunLog`: everything that a run logs, from where it is measured to the line of the log."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from trl_ext.objectives.explained import explained_in_ranges, explained_overall, pooled
from trl_ext.processes import Reduce

from .metrics import MetricBuffer
from .token_means import TokenMeans


class Speed(NamedTuple):
    """Speed of making a rollout.

    Attributes:
        tokens: Completion tokens over all processes.
        seconds: Time that sampling, scoring and the forward passes took.
    """

    tokens: float
    seconds: float

    def with_learning(self, seconds: float) -> float:
        """Return completion tokens per second, with the time that learning from all of them takes."""
        return self.tokens / max(self.seconds + seconds, 1e-9)


class RunLog:
    """The metrics of a run: of the rollout in use, of the optimizer step in progress, and since the last log line.

    A line of training holds means over the optimizer steps since the last line; each step counts the metrics of the
    rollout that it learned from. A line of an evaluation holds means over its samples, and deviations from them.

    Args:
        reduce: `reduce(tensor, "sum" | "max")` over processes.

    Attributes:
        losses: Token losses of the optimizer step in progress.
        text_losses: Token losses of its texts of PPO-ptx.
    """

    def __init__(self, reduce: Reduce):
        self._reduce = reduce
        self.restart_step()
        self._training, self._evaluation = MetricBuffer(), MetricBuffer()
        self._moments: Tensor | None = None
        self._rollout: Mapping[str, float] = {}
        self._speed = Speed(0.0, 0.0)
        self._episodes = 0  # completions sampled since `begin_run`

    # ---- training ----

    def begin_run(self) -> None:
        """Begin to count the completions of a call of `train`."""
        self._episodes = 0

    def begin_rollout(self, metrics: Mapping[str, float], speed: Speed, episodes: int) -> None:
        """Take the metrics of a fresh rollout of `episodes` completions over all processes."""
        self._rollout, self._speed = metrics, speed
        self._episodes += episodes

    def restart_step(self) -> None:
        """Forget the losses of the optimizer step in progress."""
        self.losses, self.text_losses = TokenMeans(), TokenMeans()

    def take_step(self) -> dict[str, float]:
        """Return the means over the tokens of the optimizer step on all processes, and start anew; a collective."""
        return self.losses.take(self._reduce) | self.text_losses.take(self._reduce)

    def end_step(self, metrics: Mapping[str, float], *, skipped: bool, seconds: float, steps_per_rollout: int) -> None:
        """Add a finished optimizer step to the next line.

        Args:
            metrics: Means over its tokens; empty where its gradients were dropped.
            skipped: Whether it left the weights alone.
            seconds: Time that learning took.
            steps_per_rollout: Optimizer steps on each rollout.
        """
        speed = self._speed.with_learning(seconds * steps_per_rollout)
        self._training.update(
            {**self._rollout, **metrics, "skipped_minibatches": float(skipped), "time/learn": seconds}
        )
        self._training.add("tokens_per_second", speed)

    def complete(self, line: dict[str, float], episodes: int) -> None:
        """Add the metrics since the last line to one of the Trainer's, in place.

        Args:
            line: The line.
            episodes: Completions sampled in the whole run so far, over all processes.
        """
        if "train_samples_per_second" in line:
            # The Trainer counts every pass over a rollout as new samples.
            line["train_samples_per_second"] = round(self._episodes / line["train_runtime"], 3)
        if "learning_rate" in line:
            line.pop("loss", None)  # absent where no minibatch was learned from
            line.update(self._training.flush())
        line["episodes"] = episodes

    # ---- evaluation ----

    def add_evaluated(
        self,
        metrics: Mapping[str, float],
        speed: Speed,
        seconds: float,
        samples: int,
        counts: Mapping[str, float] | None = None,
        moments: Tensor | None = None,
    ) -> None:
        """Add a batch of an evaluation.

        Args:
            metrics: Metrics of its rollout and means of its losses.
            speed: How fast the rollout was made.
            seconds: Time that its losses took.
            samples: Samples that could be scored, over all processes.
            counts: Samples behind a metric, where they are others.
            moments: Moments of the returns and of the Monte-Carlo returns by position, (2, 5, C).
        """
        timed = {"time/learn": seconds, "tokens_per_second": speed.with_learning(seconds)}
        counts = counts or {}
        for name, value in {**metrics, **timed}.items():
            if (mean := _mean_of(name)) in metrics:
                value = value**2 + metrics[mean] ** 2  # of which there is a mean over batches
            self._evaluation.add(name, value, counts.get(name, samples))
        if moments is not None:
            self._moments = pooled(self._moments, moments)

    def take_evaluation(self, prefix: str) -> dict[str, float]:
        """Return the metrics of an evaluation under its prefix, and start anew."""
        metrics, moments = self._evaluation.flush(), self._moments
        self._moments = None
        for name in metrics:
            if (mean := _mean_of(name)) in metrics:
                metrics[name] = math.sqrt(max(metrics[name] - metrics[mean] ** 2, 0.0))
        if moments is not None:  # a critic learns from no prompt of an evaluation
            explained = [explained_overall(part) for part in moments]
            metrics |= {"explained_variance": explained[0], "explained_variance/held_out": explained[1]}
            ranges = explained_in_ranges(moments[1])
            metrics |= {f"explained_variance/to_token_{end}": value for end, value in ranges.items()}
        return {f"{prefix}_{name}": value for name, value in metrics.items()}

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return what the next line of a resumed run depends on; JSON-able."""
        return {
            "metrics": self._training.state_dict(),
            "rollout_metrics": dict(self._rollout),
            "rollout_speed": list(self._speed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned; further keys of `state` are not read."""
        self._training.load_state_dict(state["metrics"])
        self._rollout, self._speed = state["rollout_metrics"], Speed(*state["rollout_speed"])


def _mean_of(name: str) -> str:
    """Return the name of the mean that a standard deviation of the trainer's belongs to; no name for another metric."""
    if name == "reward_std":
        return "reward"
    is_deviation = name.startswith(("rewards/", "advantages/")) and name.endswith("/std")
    return f"{name.removesuffix('std')}mean" if is_deviation else ""
