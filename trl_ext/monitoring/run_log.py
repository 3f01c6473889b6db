# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`RunLog`: everything that a run logs, from where it is measured to the line of the log."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trl_ext.processes import Reduce

from .metrics import MetricBuffer
from .token_means import TokenMeans


class RunLog:
    """The metrics of a run: of the rollout in use, of the optimizer step in progress, and since the last log line.

    A line of training holds means over the optimizer steps since the last line; each step counts the metrics of the
    rollout that it learned from. A line of an evaluation holds means over its batches, weighed by samples.

    Args:
        reduce: `reduce(tensor, "sum" | "max")` over processes.
    """

    def __init__(self, reduce: Reduce):
        self._reduce = reduce
        self._training, self._evaluation = MetricBuffer(), MetricBuffer()
        self._losses, self._texts = TokenMeans(), TokenMeans()
        self._rollout: dict[str, float] = {}
        self._speed = (0.0, 0.0)  # completion tokens of the rollout over all processes, seconds that making it took
        self._episodes = 0  # completions sampled since `begin_run`

    # ---- training ----

    def begin_run(self) -> None:
        """Count the completions of a call of `train`."""
        self._episodes = 0

    def begin_rollout(self, metrics: Mapping[str, float], tokens: float, seconds: float, episodes: int) -> None:
        """Take the metrics of a fresh rollout.

        Args:
            metrics: What `describe` and the callbacks returned.
            tokens: Completion tokens over all processes.
            seconds: Time that sampling, scoring and the forward passes took.
            episodes: Completions over all processes.
        """
        self._rollout, self._speed = dict(metrics), (tokens, seconds)
        self._episodes += episodes

    def add_losses(self, per_token: dict[str, Tensor], mask: Tensor) -> None:
        """Add the token losses of a micro-batch, shape (B, C) each."""
        self._losses.add(per_token, mask)

    def add_texts(self, per_token: dict[str, Tensor], mask: Tensor) -> None:
        """Add the token losses of supervised texts, shape (B, C) each."""
        self._texts.add(per_token, mask)

    def restart_step(self) -> None:
        """Forget the losses of the optimizer step in progress."""
        self._losses, self._texts = TokenMeans(), TokenMeans()

    def take_step(self) -> dict[str, float]:
        """Return the means over the tokens of the optimizer step on all processes, and start anew; a collective."""
        return {name: mean for means in (self._losses, self._texts) for name, mean in means.take(self._reduce).items()}

    def end_step(self, metrics: Mapping[str, float], *, skipped: bool, seconds: float, steps_per_rollout: int) -> None:
        """Add a finished optimizer step to the next line.

        Args:
            metrics: Means over its tokens; empty where its gradients were dropped.
            skipped: Whether it left the weights alone.
            seconds: Time that learning took.
            steps_per_rollout: Optimizer steps on each rollout.
        """
        tokens, making = self._speed
        self._training.update({**self._rollout, **metrics})
        self._training.update({"skipped_minibatches": float(skipped), "time/learn": seconds})
        self._training.add("tokens_per_second", _speed(tokens, making + seconds * steps_per_rollout))

    def complete(self, line: dict[str, float]) -> None:
        """Add the metrics since the last line to one of the Trainer's, in place."""
        if "train_samples_per_second" in line:
            # The Trainer counts every pass over a rollout as new samples.
            line["train_samples_per_second"] = round(self._episodes / line["train_runtime"], 3)
        if "learning_rate" in line:
            line.pop("loss", None)  # absent where no minibatch was learned from
            line.update(self._training.flush())

    # ---- evaluation ----

    def add_evaluated(
        self,
        metrics: Mapping[str, float],
        losses: Mapping[str, float],
        *,
        tokens: float,
        seconds: float,
        learning: float,
        samples: int,
    ) -> None:
        """Add a batch of an evaluation.

        Args:
            metrics: Metrics of its rollout.
            losses: Means over its tokens.
            tokens: Completion tokens over all processes.
            seconds: Time that making the rollout took.
            learning: Time that its losses took.
            samples: Samples that could be scored, over all processes.
        """
        timed = {"time/learn": learning, "tokens_per_second": _speed(tokens, seconds + learning)}
        self._evaluation.update({**metrics, **losses, **timed}, weight=samples)

    def take_evaluation(self, prefix: str) -> dict[str, float]:
        """Return the metrics of an evaluation under its prefix, and start anew."""
        return {f"{prefix}_{name}": value for name, value in self._evaluation.flush().items()}

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
        self._rollout = dict(state["rollout_metrics"])
        tokens, seconds = state["rollout_speed"]
        self._speed = (tokens, seconds)


def _speed(tokens: float, seconds: float) -> float:
    """Return tokens per second."""
    return tokens / max(seconds, 1e-9)
