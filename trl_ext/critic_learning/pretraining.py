# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Pretraining of the critic, on completions of the policy that training begins with."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from trl_ext.experience.rollout import Rollout
from trl_ext.experience.seeds import generator_of
from trl_ext.experience.stream import StreamRows
from trl_ext.files import write_json
from trl_ext.monitoring import PhaseProgress

from .held_out import explained_on_held_out
from .learner import CriticLearner

logger = logging.get_logger(__name__)

REPORT = "critic_pretraining.json"
# Passes without a better explained variance on held-out prompts, after which pretraining ends.
_PATIENCE = 2


@dataclass(frozen=True)
class PretrainingOptions:
    """Size and length of the critic's pretraining.

    Attributes:
        critic_pretraining_episodes: As in `PPOConfig`.
        critic_pretraining_epochs: As in `PPOConfig`.
        scales_returns: As in `PPOConfig`.
        seed: As in `PPOConfig`.
        local_batch_size: Completions that one process samples at a time.
        world_size: Number of processes.
        process_index: Number of this process.
        output_dir: Folder of the report.
        should_save: Whether this process writes it.
    """

    critic_pretraining_episodes: int
    critic_pretraining_epochs: int
    scales_returns: bool
    seed: int
    local_batch_size: int
    world_size: int
    process_index: int
    output_dir: str
    should_save: bool


class CriticPretraining:
    """Trains a critic on Monte-Carlo returns before the policy has moved (VC-PPO, arXiv 2503.01491).

    Each pass goes over all completions, while the learning rate falls linearly to 0. After each pass the completions of
    held-out prompts tell how much the critic explains; the weights of the best pass are kept, and two passes that do
    not improve on it end the training.

    Args:
        learner: Trains the critic; does not clip values.
        collect: `Collector.collect_for_critic`, with the model.
        dataset: The prompts of training.
        options: Size and length.
    """

    def __init__(
        self,
        learner: CriticLearner,
        collect: Callable[..., Rollout],
        dataset: Any,
        options: PretrainingOptions,
    ):
        self.learner, self.collect, self.dataset, self.options = learner, collect, dataset, options
        self._report: dict[str, Any] | None = None

    def run(self, progress: PhaseProgress, state: Any, log: Callable[[dict[str, float]], object]) -> dict[str, Any]:
        """Sample completions, train the critic, and write the report; a second call returns the same report.

        Args:
            progress: Shows both.
            state: The trainer's state, for reward functions.
            log: Called with the metrics of each pass, under `critic_pretraining/`.

        Returns:
            A report, JSON-able: as `explained_on_held_out` for the weights that were kept, the number of their pass as
            `epoch`, the metrics of all passes as `epochs`, the number of `episodes`, and the `seconds` it took.
        """
        if self._report is None:
            self._report = self._run(progress, state, log)
            self.learner.optimizer.state.clear()  # twice the critic's size, for the whole of PPO
            if self.options.should_save:
                write_json(Path(self.options.output_dir) / REPORT, self._report)
        return self._report

    def _run(self, progress: PhaseProgress, state: Any, log: Callable[[dict[str, float]], object]) -> dict[str, Any]:
        options, start = self.options, time.perf_counter()
        episodes = options.local_batch_size * options.world_size * len(self._batches())
        rollouts = []
        with progress.phase("sample_for_critic", episodes) as advance:
            for rows in self._rows():
                rollouts.append(self.collect(rows, progress, state=state).to("cpu"))
                advance(len(rows) * options.world_size)
        sampled = time.perf_counter()
        if options.scales_returns:
            set_scale(self.learner, rollouts)
        report = fit(
            self.learner,
            rollouts,
            epochs=options.critic_pretraining_epochs,
            seed=options.seed,
            progress=progress,
            on_epoch=lambda metrics: log({f"critic_pretraining/{name}": value for name, value in metrics.items()}),
        )
        seconds = {"sampling": sampled - start, "learning": time.perf_counter() - sampled}
        return {"episodes": episodes, "seconds": seconds, **report}

    def _batches(self) -> list[list[int]]:
        """Return the positions of the prompts of each batch over all processes, in an order that the seed decides."""
        size, prompts = self.options.local_batch_size * self.options.world_size, len(self.dataset)
        generator = torch.Generator().manual_seed(self.options.seed)
        order: list[int] = []
        while len(order) < self.options.critic_pretraining_episodes:
            in_order = isinstance(self.dataset, StreamRows)
            epoch = list(range(prompts)) if in_order else torch.randperm(prompts, generator=generator).tolist()
            order += epoch[: prompts // size * size or prompts]
        whole = -(-len(order) // size) * size  # once more from the beginning, or often where there are few prompts
        order = list(itertools.islice(itertools.cycle(order), whole))
        return [order[i : i + size] for i in range(0, self.options.critic_pretraining_episodes, size)]

    def _rows(self) -> Iterator[list[dict[str, Any]]]:
        size = self.options.local_batch_size
        start = self.options.process_index * size
        for batch in self._batches():
            yield self.dataset.__getitems__(batch[start : start + size])


def set_scale(learner: CriticLearner, rollouts: Sequence[Rollout]) -> None:
    """Set the scale of returns to the moments of all rollouts."""
    returns = torch.cat([rollout.returns[rollout.completion_mask] for rollout in rollouts]).to(learner.model.device)
    scale = learner.model.return_scale
    scale.update(learner.model.value_head, returns, torch.ones_like(returns), learner.reduce, decay=0.0)


def fit(
    learner: CriticLearner,
    rollouts: Sequence[Rollout],
    *,
    epochs: int,
    seed: int,
    progress: PhaseProgress,
    on_epoch: Callable[[dict[str, float]], object] = lambda metrics: None,
) -> dict[str, Any]:
    """Train a critic on the returns of rollouts, as `CriticPretraining` does.

    Args:
        learner: Trains the critic; does not clip values.
        rollouts: Completions with `returns` and `held_out`; as many rollouts on every process.
        epochs: Most passes.
        seed: Seed of the order of the completions.
        progress: Shows the passes.
        on_epoch: Called with the metrics of each pass.

    Returns:
        As `explained_on_held_out` for the weights that were kept, the number of their pass as `epoch`, and the metrics
        of all passes as `epochs`.
    """
    steps = epochs * len(rollouts) * learner.options.critic_mini_batches
    taken = 0
    best = explained_on_held_out(learner, rollouts)
    if best is None:
        logger.warning(
            "The critic's pretraining has too few held-out prompts to stop early by; raise "
            "`critic_pretraining_episodes` or `critic_held_out`."
        )
    kept_epoch, kept = 0, _weights(learner)
    history: list[dict[str, float]] = []
    with progress.phase("pretrain_critic", steps, "steps") as advance:

        def on_step() -> None:
            nonlocal taken
            learner.set_learning_rate(1 - taken / steps)
            taken += 1
            advance()

        for epoch in range(1, epochs + 1):
            loss = _one_pass(learner, rollouts, (seed, epoch), on_step)
            explained = explained_on_held_out(learner, rollouts)
            history.append({"epoch": epoch, "value_loss": loss})
            if explained is not None:
                history[-1]["explained_variance"] = explained["explained_variance"]
            on_epoch(history[-1])
            if best is None or explained is None or explained["explained_variance"] > best["explained_variance"]:
                best, kept_epoch, kept = explained, epoch, _weights(learner)
            elif epoch - kept_epoch >= _PATIENCE:
                break
    _restore(learner, kept)
    return {**(best or {}), "epoch": kept_epoch, "epochs": history}


def _one_pass(
    learner: CriticLearner, rollouts: Sequence[Rollout], seed: tuple[int, int], on_step: Callable[[], object]
) -> float:
    """Go over all rollouts, in an order that is the same on every process; return the mean value loss."""
    order = torch.randperm(len(rollouts), generator=generator_of(*seed)).tolist()
    losses = [learner.learn(rollouts[i], 1, (*seed, i), on_step).get("value_loss") for i in order]
    return sum(loss for loss in losses if loss is not None) / max(len(losses), 1)


def _weights(learner: CriticLearner) -> dict[str, Tensor]:
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in learner.parameters.items()}


@torch.no_grad()
def _restore(learner: CriticLearner, weights: dict[str, Tensor]) -> None:
    for name, parameter in learner.parameters.items():
        parameter.copy_(weights[name])
