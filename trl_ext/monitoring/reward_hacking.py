# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`RewardHackingMonitor`: alarms when a policy over-optimizes its reward."""

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from trl_ext.messages.printable import error_text, one_line
from trl_ext.processes import gather, together
from trl_ext.rewards import Scores, reward_name
from trl_ext.rewards.base import Batch, check_state, fresh, is_stateful, keeps_statistics
from trl_ext.rewards.retry import run_reward
from trl_ext.rewards.tokens import sums
from trl_ext.text.ngrams import distinct_n, repetition

from .signals import MOST_CATEGORIES, TOLERANCES, Alarm, Looks, Marks, Signals

logger = logging.get_logger(__name__)

# Not the name of the class: transformers would then try to rebuild the callback from its saved state alone, and a gold
# reward function cannot be written down as JSON.
STATE_KEY = "trl_ext.reward_hacking"
GOLD = "monitor/gold"
IN_BUDGET = "monitor/gold_in_budget"


class RewardHackingMonitor(TrainerCallback):
    """Watches a run for over-optimization of its reward and raises an alarm once per signal.

    See "Scaling Laws for Reward Model Overoptimization" (Gao et al. 2023, arXiv 2210.10760). The signals:

    - "gold": the gold score has fallen from its best. "divergence": the gold score has fallen, if only a little, while
      the reward rose, and lies well below the rise that the reward had promised. Both by
      [`change_detection.Overoptimization`], in evaluations (prompt by prompt) and in the rollouts of training.
    - "length_up", "length_down", "repetition" (fraction of token 3-grams that occur again in a completion),
      "diversity" (distinct-2: different token bigrams divided by all, in equally long beginnings of the completions),
      "disagreement" (of an `Ensemble`): they have left the neighbourhood of their first `warmup` rollouts, by
      [`change_detection.Drift`].

    An alarm is warned about, logged, and kept in `alarms`. Logs get, under `monitor/`: `gold`, `repetition`,
    `distinct_2`, `sqrt_kl`, `alarms` (how many), and `evidence/<signal>` (1 raises the alarm; gold's is that of the
    latest comparison); evaluations `gold`, `repetition` and `distinct_2`. So
    `metric_for_best_model="eval_monitor/gold"` keeps the checkpoint with the best gold score, and
    `"eval_monitor/gold_in_budget"` the best one within `max_kl`.

    ```python
    monitor = RewardHackingMonitor(judge, max_kl=8.0)
    args = PPOConfig(load_best_model_at_end=True, metric_for_best_model="eval_monitor/gold_in_budget", ...)
    PPOTrainer(model, reward_model, args, callbacks=[monitor], ...)
    ```

    The state goes into every checkpoint and comes back on resuming, with that of a `gold` that has state, which
    evaluations do not change.

    Args:
        gold: Reward function that measures the true quality and is never trained on. Without one, the monitor watches
            the other signals only.
        gold_every: Score every `gold_every`-th rollout of training with `gold`; None scores evaluations only.
        max_kl: KL budget in nats per completion, for `gold_in_budget`.
        category: Column with the category of each prompt, such as its task: the gold score of each is then compared
            too, and logged for each rollout as `monitor/gold/<category>`. None: no categories.
        tolerances: Changes to `TOLERANCES`: the factor by which a signal may grow (`length_up`, `disagreement`) or
            shrink (`length_down`, `diversity`), the difference by which `repetition` may rise; None switches one off.
        warmup: Rollouts that estimate start and noise of the signals.
        stop_on_alarm: End the run after the step with an alarm, and again if it is resumed from there.
        retries: Further calls of `gold` where it raises; samples without a score are left out.
        timeout: Limit of a call of `gold` in seconds.

    Raises:
        TypeError: `gold` cannot be called.
        ValueError: an option out of range, an unknown signal in `tolerances`, a `gold` whose state is no JSON or whose
            unit moves with the training.
    """

    def __init__(
        self,
        gold: Callable | None = None,
        *,
        gold_every: int | None = 1,
        max_kl: float | None = None,
        category: str | None = None,
        tolerances: Mapping[str, float | None] | None = None,
        warmup: int = 10,
        stop_on_alarm: bool = False,
        retries: int = 2,
        timeout: float | None = None,
    ):
        if gold is not None and not callable(gold):
            raise TypeError(
                f"`gold` is {gold!r:.60}, which is no reward function: wrap the name of a model in PreferenceReward."
            )
        _check_gold(gold)
        if warmup < 3 or (gold_every is not None and gold_every < 1) or (max_kl is not None and not max_kl > 0):
            raise ValueError(
                f"Got warmup={warmup}, gold_every={gold_every}, max_kl={max_kl}: they must be at least 3, at least 1 "
                "or None, and positive or None."
            )
        chosen = {**TOLERANCES, **(tolerances or {})}
        if chosen.keys() != TOLERANCES.keys():
            raise ValueError(
                f"`tolerances` names {sorted(chosen.keys() - TOLERANCES.keys())}: the signals are {list(TOLERANCES)}."
            )
        for name, tolerance in chosen.items():
            least = 0.0 if name == "repetition" else 1.0
            if tolerance is not None and not tolerance > least:
                raise ValueError(f"The tolerance of {name!r} is {tolerance}: it must be above {least:g}, or None.")
        self.gold, self.gold_every, self.max_kl, self.category = gold, gold_every, max_kl, category
        self.tolerances, self.warmup, self.stop_on_alarm = chosen, warmup, stop_on_alarm
        self.retries, self.timeout = retries, timeout
        self._reset()

    def _reset(self) -> None:
        self._signals = Signals(self.tolerances, self.warmup)
        self._rollouts = 0
        self._gold_states: list[dict[str, Any]] = []  # of each process, after the latest rollout; none without state
        self._text_length: int | None = None  # tokens of each completion that count for distinct-2
        self._evaluation: list[tuple] = []  # (proxy, gold, category) of each sample of the evaluation under way

    @property
    def alarms(self) -> list[Alarm]:
        """The alarms so far, in their order."""
        return self._signals.alarms

    # ---- hooks of the trainer ----

    def on_rollout(
        self, batch: Batch, scores: Scores, metrics: Mapping[str, float], *, state: Any, training: bool
    ) -> dict[str, float]:
        """Add a scored batch; every process calls it.

        Args:
            batch: N samples of this process, none of them on two processes.
            scores: Their rewards.
            metrics: Metrics that the trainer will log, with "kl" in nats per completion.
            state: The trainer's.
            training: Whether the policy learns from the batch; otherwise the batch belongs to an evaluation.

        Returns:
            Metrics to log with it, the same on every process.
        """
        if training:
            self._rollouts += 1
        measure = not training or (self.gold_every is not None and (self._rollouts - 1) % self.gold_every == 0)
        measure = measure and self.gold is not None and len(batch) > 0  # a process may have no rows of an evaluation
        with together("Scoring by the gold reward"):
            golds = self._gold_scores(batch, state, training) if measure else [None] * len(batch)
        if training and is_stateful(self.gold):
            self._gold_states = gather(copy.deepcopy(self.gold.state_dict()))
        ids = batch.completion_ids or []
        if self._text_length is None and training:
            self._text_length = max(2, round(statistics.fmean(_over_processes([float(len(row)) for row in ids]))))
        proxies = [p if ok else math.nan for p, ok in zip(scores.total.tolist(), scores.valid.tolist(), strict=True)]
        marks = _over_processes(list(zip(proxies, golds, self._categories(batch), strict=True)))
        looks = Looks(
            length=statistics.fmean(_over_processes([float(len(row)) for row in ids])),
            repetition=statistics.fmean(_over_processes([repetition(row) for row in ids])),
            distinct_2=distinct_n(_over_processes([row[: self._text_length] for row in ids]), 2),
            disagreement=_mean(_over_processes([_disagreement(scores.metrics)])),
        )
        logged = {"monitor/repetition": looks.repetition, "monitor/distinct_2": looks.distinct_2}
        known = [gold for _, gold, _ in marks if gold is not None]
        if known:
            logged[GOLD] = statistics.fmean(known)
        if not training:
            self._evaluation += marks
            return logged
        logged |= _by_category(marks)
        logged["monitor/sqrt_kl"] = math.sqrt(max(metrics["kl"], 0.0))
        self._warn(self._signals.add_looks(looks, state.global_step))
        if known:
            self._warn(self._signals.add_marks("", Marks(*zip(*marks, strict=True)), state.global_step))
        return logged | self._summary()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Compare the evaluation with earlier ones, and add `gold_in_budget` and `gold/<category>` to its metrics.

        The Trainer chooses the best model from the very dictionary that is passed here, after this call.
        """
        marks, self._evaluation = self._evaluation, []
        seen = "monitor/repetition"  # in the metrics of every evaluation that was looked at
        for prefix in [key.removesuffix(seen) for key in metrics if key.endswith(seen) and self.gold is not None]:
            self._warn(self._signals.add_marks(prefix, Marks(*zip(*marks, strict=True)), state.global_step))
            # NaN, also where nothing could be measured, is never better than anything.
            metrics |= {f"{prefix}{name}": value for name, value in _by_category(marks).items()}
            gold = metrics.setdefault(f"{prefix}{GOLD}", math.nan)
            if self.max_kl is not None:
                metrics[f"{prefix}{IN_BUDGET}"] = gold if metrics[f"{prefix}kl"] <= self.max_kl else math.nan
        self._finish(state, control)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Forget the samples: a test set is not compared with evaluations."""
        self._evaluation = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start without history, or restore the state of a checkpoint."""
        self._reset()
        if STATE_KEY in state.stateful_callbacks:
            self.load_state_dict(state.stateful_callbacks[STATE_KEY], args.process_index)
        elif state.global_step > 0:
            warnings.warn(
                "The checkpoint has no state of a RewardHackingMonitor, so what is normal is learned from here on: for "
                "a comparison with the start, monitor a run from its start.",
                stacklevel=2,
            )
        self._finish(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the state into the next checkpoint, and stop the run after an alarm if `stop_on_alarm`."""
        if not self._rollouts:
            warnings.warn(
                "This trainer shows its rollouts to no RewardHackingMonitor, which sees nothing: use PPOTrainer, or "
                "call `observe_rollout` where completions have been scored.",
                stacklevel=2,
            )
        self._finish(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn if no evaluation kept within `max_kl`."""
        metric = args.metric_for_best_model or ""
        if args.load_best_model_at_end and metric.endswith(IN_BUDGET) and state.best_global_step in (None, 0):
            warnings.warn(
                f"No evaluation had a KL within max_kl={self.max_kl}, so there is no best model and the last one "
                "stays: evaluate more often, raise the budget, or hold the KL down.",
                stacklevel=2,
            )

    # ---- evidence and alarms ----

    def _finish(self, state: Any, control: Any) -> None:
        state.stateful_callbacks[STATE_KEY] = self.state_dict()
        if self.alarms and self.stop_on_alarm:
            control.should_training_stop = True

    def _summary(self) -> dict[str, float]:
        evidence = {f"monitor/evidence/{name}": value for name, value in self._signals.evidence.items()}
        return {"monitor/alarms": float(len(self.alarms))} | evidence

    def _gold_scores(self, batch: Batch, state: Any, training: bool) -> list[float | None]:
        gold: Any = self.gold
        before = copy.deepcopy(gold.state_dict()) if is_stateful(gold) and not training else None
        batch = replace(batch, services={"trainer_state": state, **batch.services})
        allowed = max(1.0, 0.1 * len(batch))
        result = run_reward(
            gold,
            batch,
            retries=self.retries,
            timeout=self.timeout,
            allowed_failures=allowed,
            on_progress=lambda n: None,
        )
        if before is not None:
            gold.load_state_dict(before)
        if not result.failures:
            return sums(result.rewards)
        error = next(reversed(result.failures.values()))
        lost = len(result.failures) > allowed
        warnings.warn(
            f"The gold reward '{reward_name(gold)}' failed on {len(result.failures)} of {len(batch)} samples "
            f"({error_text(error)}); {'this batch is not measured' if lost else 'they are left out'}.",
            stacklevel=2,
        )
        return [None] * len(batch) if lost else sums(result.rewards)

    def _categories(self, batch: Batch) -> list[str | None]:
        if self.category is None:
            return [None] * len(batch)
        if self.category not in batch.columns:
            raise ValueError(
                f"RewardHackingMonitor has category={self.category!r}, but the prompts have the columns "
                f"{sorted(batch.columns)}; name one of them, or leave it out."
            )
        return [None if value is None else str(value) for value in batch.columns[self.category]]

    def _warn(self, alarms: list[Alarm]) -> None:
        for alarm in alarms:
            text = f"Reward hacking? Signal '{alarm.signal}' at step {alarm.step}: {alarm.message}."
            logger.warning(text)
            warnings.warn(text, stacklevel=3)

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able state for a checkpoint."""
        own = {"rollouts": self._rollouts, "text_length": self._text_length, "gold_states": self._gold_states}
        return {**own, **self._signals.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], process_index: int = 0) -> None:
        """Restore the state that `state_dict` returned; signals that were switched on since start without history.

        Args:
            state: The state; it has that of `gold` on every process.
            process_index: Whose state of `gold` comes back.
        """
        self._reset()
        self._rollouts, self._text_length = state["rollouts"], state["text_length"]
        self._signals.load_state_dict(state)
        self._gold_states = list(state.get("gold_states", []))  # earlier versions kept none
        if is_stateful(self.gold) and process_index < len(self._gold_states):
            self.gold.load_state_dict(copy.deepcopy(self._gold_states[process_index]))


def _check_gold(gold: Any) -> None:
    check_state(gold, "Gold reward")
    if keeps_statistics(gold):
        raise ValueError(
            f"Gold reward '{reward_name(gold)}' measures in units that move with the training, so that its scores of "
            "two rollouts cannot be compared; give the function inside it."
        )


def observe_rollout(
    callbacks: Iterable[Any], batch: Batch, scores: Scores, metrics: Mapping[str, float], *, state: Any, training: bool
) -> dict[str, float]:
    """Show a scored batch to the callbacks that have an `on_rollout`, and return the metrics they add.

    Args:
        callbacks: The trainer's.
        batch: As in [`RewardHackingMonitor.on_rollout`].
        scores: As in [`RewardHackingMonitor.on_rollout`].
        metrics: As in [`RewardHackingMonitor.on_rollout`].
        state: As in [`RewardHackingMonitor.on_rollout`].
        training: As in [`RewardHackingMonitor.on_rollout`].

    Returns:
        Metrics to log with those of the batch.
    """
    added: dict[str, float] = {}
    for callback in callbacks:
        if hasattr(callback, "on_rollout"):
            shown = (batch.fresh(), fresh(scores), dict(metrics))  # copies, which a callback may change
            added |= callback.on_rollout(*shown, state=state, training=training)
    return added


def _by_category(marks: list[tuple[float, float | None, str | None]]) -> dict[str, float]:
    """Return the mean gold score of each category."""
    found: dict[str, list[float]] = {}
    for _, gold, category in marks:
        if gold is not None and category is not None:
            found.setdefault(category, []).append(gold)
    if len(found) > MOST_CATEGORIES:
        warnings.warn(
            f"The prompts have {len(found)} different values in the `category` of RewardHackingMonitor, more than "
            f"{MOST_CATEGORIES}, so it is not compared by category: choose a column with fewer.",
            stacklevel=3,
        )
        return {}
    return {f"{GOLD}/{one_line(category, 40)}": statistics.fmean(golds) for category, golds in sorted(found.items())}


def _disagreement(metrics: Mapping[str, float]) -> float:
    return _mean([value for name, value in metrics.items() if name.endswith("/disagreement")])


def _mean(values: list[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return statistics.fmean(values) if values else math.nan


def _over_processes(values: list) -> list:
    """Return the values of all processes, in their order; a collective if torch.distributed runs."""
    return [value for part in gather(values) for value in part]
