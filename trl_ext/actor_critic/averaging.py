# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""An exponential moving average of the trained policy, beside the last one."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from trl_ext.sharding import gathered_state, is_sharded, like, local, resharded

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
        self._averages = [p.detach().clone() for _, p in model.actor_parameters()] if self.is_on else []
        self._average_into = get_ema_multi_avg_fn(0.0 if decay is None else decay)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return this process's part of every weight, and of its average."""
        # FSDP replaces the parameters when training begins.
        weights = [parameter for _, parameter in resharded(self.model).actor_parameters()] if self.is_on else []
        self._averages = [like(average, weight) for average, weight in zip(self._averages, weights, strict=True)]
        return [(local(w).detach(), local(average)) for w, average in zip(weights, self._averages, strict=True)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the weights of a step into the average."""
        if self.is_on and self.steps.stepped:
            weights, averages = zip(*self._pairs(), strict=True)
            self._average_into(averages, weights, None)

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
        for weight, average in self._pairs():
            trained = weight.clone()
            weight.copy_(average)
            average.copy_(trained)

    def gathered(self) -> dict[str, Tensor] | None:
        """Return the whole state dict with the average for the policy's weights; a collective.

        Returns:
            None without an average, and where every process has all weights.
        """
        if not (self.is_on and is_sharded(resharded(self.model))):
            return None
        with self.in_place():
            return gathered_state(self.model)

    def save_both(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        state_dict: dict[str, Tensor] | None = None,
        average: dict[str, Tensor] | None = None,
    ) -> None:
        """Save the actor-critic, and in the subfolder `ema` the average with the tokenizer as a policy of its own.

        Args:
            folder: The folder.
            tokenizer: The tokenizer.
            state_dict: Whole state dict of the actor-critic, where this process has but a part of the weights.
            average: What `gathered` returned.
        """
        self.model.save_pretrained(folder, state_dict)
        if self.is_on:
            with self.in_place() if average is None else nullcontext():
                self.model.save_policy(folder / AVERAGE_FOLDER, average)
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
        for weight, average in self._pairs():
            average.copy_(weight)


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
