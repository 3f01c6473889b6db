# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""An exponential moving average of the trained policy, beside the last one."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from .model import ActorCritic

logger = logging.getLogger(__name__)

AVERAGE_FOLDER = "ema"


class Steps(Protocol):
    """Knows whether the last optimizer step was taken."""

    stepped: bool


class PolicyAverage(TrainerCallback):
    """Averages the policy's trained weights: `average = decay * average + (1 - decay) * weights` after each step.

    The average starts at the initial policy, so it also lags behind: WARP (arXiv 2406.16768, section 3.1) uses such an
    average as the anchor of the KL. Of a LoRA adapter A and B are averaged each. The arithmetic is torch's
    (`torch.optim.swa_utils`); its `AveragedModel` would copy the frozen base too. Held in float32, as the trained
    weights are, on their device.

    Args:
        model: The actor-critic in training.
        decay: Weight of the old average, in (0, 1); None for no average: nothing is held and nothing happens.
        steps: Says whether a step was taken; after a skipped one the average stays.

    Attributes:
        is_on: Whether there is an average.
        is_in_place: Whether the policy has the average for its weights.
    """

    def __init__(self, model: ActorCritic, decay: float | None, steps: Steps):
        self.model, self.steps = model, steps
        self.is_on, self.is_in_place = decay is not None, False
        self._weights = [parameter for _, parameter in model.actor_parameters()] if self.is_on else []
        self._averages = [parameter.detach().clone() for parameter in self._weights]
        self._average_into = get_ema_multi_avg_fn(0.0 if decay is None else decay)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the weights of a step into the average."""
        if self.is_on and self.steps.stepped:
            self._average_into(self._averages, [p.detach() for p in self._weights], None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange the policy's weights with the average for the length of a block."""
        self._exchange()
        self.is_in_place = True
        try:
            yield
        finally:
            self._exchange()
            self.is_in_place = False

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self._weights, self._averages, strict=True):
            trained = parameter.clone()
            parameter.copy_(average)
            average.copy_(trained)

    def save_both(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Save the actor-critic, and in the subfolder `ema` the average with the tokenizer as a policy of its own."""
        self.model.save_pretrained(folder)
        if self.is_on:
            with self.in_place():
                self.model.save_policy(folder / AVERAGE_FOLDER)
            tokenizer.save_pretrained(folder / AVERAGE_FOLDER)

    def load_both(self, folder: Path) -> None:
        """Load what `save_both` left; without an average there it begins again at the loaded weights."""
        self.model.load_pretrained(folder)
        if self.is_on:
            self.load(folder)

    def load(self, folder: Path) -> None:
        """Load the average alone."""
        if (folder / AVERAGE_FOLDER).is_dir():
            with self.in_place():
                self.model.load_policy(folder / AVERAGE_FOLDER)
            return
        logger.warning(f"'{folder}' has no average of the policy; `policy_ema_decay` begins at its weights.")
        for parameter, average in zip(self._weights, self._averages, strict=True):
            average.copy_(parameter.detach())


def evaluated_too(evaluation_loop: Callable[..., Any]) -> Callable[..., Any]:
    """Make a trainer's `evaluation_loop` evaluate its `policy_average` after the policy, under the prefix `eval_ema`.

    Both get the same random numbers. The output is that for the policy, with the metrics of both.
    """

    @functools.wraps(evaluation_loop)
    def both(trainer: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        average, device = trainer.policy_average, trainer.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=average.is_on):
            output = evaluation_loop(trainer, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if average.is_on:
            with average.in_place():
                prefix = f"{metric_key_prefix}_ema"
                averaged = evaluation_loop(trainer, *args, metric_key_prefix=prefix, **kwargs)
            output.metrics.update(averaged.metrics)
        return output

    return both
