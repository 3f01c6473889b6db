# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Bounds on reward functions, kept by multipliers that a controller moves: "toxicity <= 0.05".

"Confronting Reward Model Overoptimization with Constrained RLHF" (Moskovitz et al. 2023, arXiv 2310.04373): maximize a
reward subject to bounds on others, by the Lagrangian with one multiplier for each bound. Their multipliers are learned
by gradient; here each is moved by the PID controller that also holds the KL.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trl_ext.kl_control import LogPID, check_names, parse_constraints
from trl_ext.objectives import global_moments
from trl_ext.processes import Reduce

MIN_MULTIPLIER, MAX_MULTIPLIER = 1e-3, 1e3


class Constraints:
    """Multipliers that hold bounds on the means of reward functions, and the reward that they make of all functions.

    With the total R of the functions without a bound, signs s_i (+1 for >=, -1 for <=) and multipliers mu_i, the policy
    learns from

        (R + sum_i mu_i s_i (r_i - bound_i)) / (1 + sum_i mu_i),

    the convex combination of the paper: its scale stays that of its parts, whatever the multipliers are. A multiplier
    begins at the size of the weight that its function was given. After each rollout it moves by [`LogPID`] with the
    error s_i (bound_i - mean r_i) / std r_i, mean and standard deviation over the completions of all processes: the
    unit of a function does not matter. It doubles in ln 2 / (ki * max_error) = 12 rollouts at most.

    Args:
        texts: As `reward_constraints` of `PPOConfig`; empty: nothing changes.
        names: F names of the reward functions.
        weights: F weights.

    Attributes:
        by_column: The constraints, by the number of their function.

    Raises:
        ValueError: a text that is no constraint, an unknown name, a name twice, or a weight that no multiplier can
            begin with.
    """

    def __init__(self, texts: Iterable[str], names: Sequence[str], weights: Sequence[float]):
        found = parse_constraints(texts)
        check_names(found, names)
        if found and len(found) == len(names):
            warnings.warn(
                "Every reward function has a bound in `reward_constraints`, so none is maximized: the policy keeps the "
                "bounds and its KL low; leave out the bound of the function to maximize.",
                stacklevel=3,
            )
        self.by_column = {names.index(constraint.name): constraint for constraint in found}
        self._given = list(weights)
        self._pids = {}
        for i, constraint in self.by_column.items():
            start = abs(weights[i])
            if not MIN_MULTIPLIER <= start <= MAX_MULTIPLIER:
                raise ValueError(
                    f"`reward_weights` gives '{constraint.name}' the weight {weights[i]:g}, with which the multiplier "
                    f"of '{constraint}' begins: its size must be between {MIN_MULTIPLIER:g} and {MAX_MULTIPLIER:g}."
                )
            limits = {"min_coef": MIN_MULTIPLIER, "max_coef": MAX_MULTIPLIER}
            self._pids[i] = LogPID(init_coef=start, kp=1.0, ki=0.2, kd=0.0, max_error=0.3, **limits)

    def __bool__(self) -> bool:
        return bool(self.by_column)

    @property
    def maximized(self) -> Tensor:
        """Weight of each function in the total that is maximized, float32, (F,); 0 for those with a bound."""
        return torch.tensor([0.0 if i in self.by_column else weight for i, weight in enumerate(self._given)])

    @property
    def weights(self) -> Tensor:
        """Weight of each function in what the policy learns from, now, float32, (F,)."""
        whole = 1.0 + math.fsum(pid.coef for pid in self._pids.values())
        weights = [weight / whole for weight in self._given]
        for i, pid in self._pids.items():
            weights[i] = (pid.coef if self.by_column[i].is_lower else -pid.coef) / whole
        return torch.tensor(weights)

    @property
    def bounds(self) -> Tensor:
        """Bound of each function, from which its reward is counted, float32, (F,); 0 for those without."""
        bounds = torch.zeros(len(self._given))
        for i, constraint in self.by_column.items():
            bounds[i] = constraint.bound
        return bounds

    def learned(self, per_function: Tensor) -> Tensor:
        """Return what the policy learns from, (N,), of the rewards (N, F), in which NaN counts for nothing."""
        return ((per_function - self.bounds) * self.weights).nansum(dim=1)

    def observe(self, per_function: Tensor, reduce: Reduce, *, training: bool) -> dict[str, float]:
        """Take in the rewards of a rollout, (N, F) with NaN where there is none, and return the metrics of it.

        The metrics are the multiplier that the rollout was scored with, and the violation: how far the mean is beyond
        the bound, in the unit of the function; negative inside the bound. Only training moves the multipliers. A
        collective over the processes.
        """
        metrics = {}
        for i, constraint in self.by_column.items():
            values = per_function[:, i]
            mean, variance, count = global_moments(values, ~values.isnan(), reduce)
            metrics[f"constraints/{constraint.name}/multiplier"] = self._pids[i].coef
            if count == 0:
                continue
            violation = (constraint.bound - float(mean)) * (1 if constraint.is_lower else -1)
            metrics[f"constraints/{constraint.name}/violation"] = violation
            if training:
                self._pids[i].step(violation / max(float(variance.sqrt()), 1e-9))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return bound and multiplier of each constraint, by the function's name; JSON-able."""
        return {
            constraint.name: {"constraint": str(constraint), "multiplier": self._pids[i].state_dict()}
            for i, constraint in self.by_column.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the multipliers; warn where a bound is another one.

        Raises:
            ValueError: the state has bounds on other functions.
        """
        names = {constraint.name for constraint in self.by_column.values()}
        if names != state.keys():
            raise ValueError(
                f"The checkpoint has `reward_constraints` on {sorted(state)}, and this run on {sorted(names)}: resume "
                "with constraints on the same reward functions."
            )
        for i, constraint in self.by_column.items():
            saved = state[constraint.name]
            self._pids[i].load_state_dict(saved["multiplier"])
            if saved["constraint"] != str(constraint):
                warnings.warn(
                    f"The constraint was '{saved['constraint']}' when the checkpoint was written and is '{constraint}' "
                    "now; the run goes on with the new one.",
                    stacklevel=2,
                )
