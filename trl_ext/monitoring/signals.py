# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The signals of over-optimization: what each is measured by, and when it raises an alarm.

Nothing here knows a trainer: a series that was written down can be replayed through `Signals`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trl_ext.messages.printable import one_line

from .change_detection import Drift, Finding, Overoptimization

# Allowed distance of each signal from its start, see `RewardHackingMonitor`.
TOLERANCES: Mapping[str, float | None] = {
    "length_up": 1.5,
    "length_down": 1.5,
    "repetition": 0.1,
    "diversity": 1.5,
    "disagreement": 1.5,
}
MOST_CATEGORIES = 50  # more values in a column are no categories
_WHAT = {
    "length_up": "completions have become longer",
    "length_down": "completions have become shorter",
    "repetition": "completions repeat themselves more",
    "diversity": "completions have become more alike (distinct-2)",
    "disagreement": "the reward models of the ensemble disagree more",
}


class Alarm(NamedTuple):
    """An alarm of a monitor.

    Attributes:
        signal: "gold", "divergence", "length_up", "length_down", "repetition", "diversity" or "disagreement", or
            "gold/" and the name of a category.
        step: Optimizer step of the alarm.
        message: The figures, in a sentence.
    """

    signal: str
    step: int
    message: str


class Marks(NamedTuple):
    """Scores of N completions, over all processes.

    Attributes:
        proxies: Rewards that are optimized; NaN where there is none.
        golds: Gold scores; None where there is none.
        categories: Category of each prompt; None where there is none.
    """

    proxies: Sequence[float]
    golds: Sequence[float | None]
    categories: Sequence[str | None]


class Looks(NamedTuple):
    """How the completions of a rollout look, over all processes; NaN where nothing could be measured.

    Attributes:
        length: Mean number of tokens.
        repetition: Mean fraction of token 3-grams that occur again in a completion.
        distinct_2: Different token bigrams divided by all, in equally long beginnings.
        disagreement: Mean standard deviation between the members of an ensemble.
    """

    length: float
    repetition: float
    distinct_2: float
    disagreement: float


class Signals:
    """Collects the evidence of every signal, and raises one alarm for each.

    Args:
        tolerances: One for each key of `TOLERANCES`; None switches a signal off.
        warmup: Rollouts that estimate start and noise of the looks.

    Attributes:
        alarms: Alarms so far, in their order.
        evidence: Latest evidence by signal; 1 raises the alarm.
    """

    def __init__(self, tolerances: Mapping[str, float | None], warmup: int):
        self.alarms: list[Alarm] = []
        self.evidence: dict[str, float] = {}
        self._drifts = {
            name: Drift(tolerance if name == "repetition" else math.log(tolerance), warmup)
            for name, tolerance in tolerances.items()
            if tolerance is not None
        }
        self._golds: dict[str, Overoptimization] = {}  # by prefix of the evaluation; "" is training
        self._categories: dict[str, dict[str, Overoptimization]] = {}  # by prefix and category

    def add_looks(self, looks: Looks, step: int) -> list[Alarm]:
        """Add how a rollout of training looks, and return the new alarms.

        Factors become differences of logarithms, so that 2 and 1/2 are equally far.
        """
        floor = 1e-6
        values = {
            "length_up": math.log(looks.length + floor),
            "length_down": -math.log(looks.length + floor),
            "repetition": looks.repetition,
            "diversity": -math.log(looks.distinct_2 + floor),
            "disagreement": math.log(looks.disagreement + floor),
        }
        raised = []
        for name, drift in self._drifts.items():
            if math.isnan(values[name]):
                continue
            self.evidence[name] = drift.add(values[name])
            if self.evidence[name] >= 1:
                sign = -1 if name in ("length_down", "diversity") else 1
                was, now = drift.start, values[name]
                if name != "repetition":
                    was, now = math.exp(sign * was) - floor, math.exp(sign * now) - floor
                raised += self._raise(name, step, f"{_WHAT[name]}: {now:.4g}, and {was:.4g} at the start")
        return raised

    def add_marks(self, prefix: str, marks: Marks, step: int) -> list[Alarm]:
        """Add the scores of a rollout (`prefix` "") or of an evaluation, and return the new alarms."""
        known = [proxy for proxy in marks.proxies if not math.isnan(proxy)]
        if not known:
            return []
        pairs = zip(marks.proxies, marks.golds, strict=True)
        golds = [None if math.isnan(proxy) else gold for proxy, gold in pairs]
        history = self._golds.setdefault(prefix, Overoptimization(paired=bool(prefix)))
        findings = history.add(step, statistics.fmean(known), golds)
        source = f"in the evaluations '{prefix.rstrip('_')}'" if prefix else "on the samples of training"
        raised = []
        for name, finding in zip(("gold", "divergence"), findings, strict=True):
            self.evidence[name] = finding.evidence
            if finding.evidence >= 1:
                raised += self._raise(name, step, _gold_message(name, finding, source))
        return raised + self._add_categories(prefix, marks._replace(golds=golds), statistics.fmean(known), step)

    def _add_categories(self, prefix: str, marks: Marks, proxy: float, step: int) -> list[Alarm]:
        """Compare the gold scores of each category, and return alarms of those that fall while the reward rises.

        The limit grows with their number C: a normal variable exceeds z with a probability of about exp(-z^2 / 2), and
        C times less of it is z^2 + 2 log C.
        """
        found: dict[str, list[float | None]] = {}
        for category, gold in zip(marks.categories, marks.golds, strict=True):
            if category is not None:
                found.setdefault(category, []).append(gold)
        histories = self._categories.setdefault(prefix, {})
        if len(histories.keys() | found.keys()) > MOST_CATEGORIES:
            return []
        raised, evidence = [], 0.0
        for category, golds in found.items():
            if category not in histories:
                histories[category] = Overoptimization(paired=bool(prefix), divergence=False)
            finding, _ = histories[category].add(step, proxy, golds)
            if finding.proxy[1] <= finding.proxy[0]:
                continue
            strength = max(0.0, finding.z) / math.sqrt(finding.limit**2 + 2 * math.log(len(histories)))
            evidence = max(evidence, strength)
            if strength >= 1:
                source = f"of category '{one_line(category, 40)}'"
                raised += self._raise(f"gold/{category}", step, _gold_message("gold", finding, source))
        if found:
            self.evidence["category"] = evidence
        return raised

    def _raise(self, signal: str, step: int, message: str) -> list[Alarm]:
        if signal in {alarm.signal for alarm in self.alarms}:
            return []
        self.alarms.append(Alarm(signal, step, message))
        return self.alarms[-1:]

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able state for a checkpoint."""
        return {
            "alarms": [list(alarm) for alarm in self.alarms],
            "drifts": {name: drift.state_dict() for name, drift in self._drifts.items()},
            "golds": {prefix: history.state_dict() for prefix, history in self._golds.items()},
            "categories": {
                prefix: {category: history.state_dict() for category, history in histories.items()}
                for prefix, histories in self._categories.items()
            },
            "evidence": dict(self.evidence),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; signals that were switched on since start without history."""
        self.alarms = [Alarm(*alarm) for alarm in state["alarms"]]
        for name, drift in self._drifts.items():
            if name in state["drifts"]:
                drift.load_state_dict(state["drifts"][name])
        for prefix, history in state["golds"].items():
            self._golds[prefix] = Overoptimization(paired=bool(prefix))
            self._golds[prefix].load_state_dict(history)
        for prefix, histories in state.get("categories", {}).items():  # earlier versions knew none
            self._categories[prefix] = {}
            for category, history in histories.items():
                restored = Overoptimization(paired=bool(prefix), divergence=False)
                restored.load_state_dict(history)
                self._categories[prefix][category] = restored
        self.evidence = dict(state["evidence"])


def _gold_message(signal: str, finding: Finding, source: str) -> str:
    (gold, gold_now), (proxy, proxy_now) = finding.gold, finding.proxy
    change = "has fallen" if signal == "gold" else "no longer follows the reward: it went"
    return (
        f"the gold reward {source} {change} from {gold:.4g} (step {finding.step}) to {gold_now:.4g}, while the reward "
        f"went from {proxy:.4g} to {proxy_now:.4g} ({finding.z:.1f} standard errors)"
    )
