# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`Collector`: makes a rollout, from prompts to advantages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trl_ext.actor_critic import ForwardOutput
from trl_ext.micro_batches import MicroBatches
from trl_ext.monitoring import PhaseProgress
from trl_ext.objectives import last_token_index
from trl_ext.processes import together
from trl_ext.rewards import RewardRunner, Scores
from trl_ext.rewards.base import Batch
from trl_ext.text.decoding import as_completions, decode_answers

from .advantages import AdvantageOptions, add_advantages, check_finite, describe, importance_weights
from .engines import Completions
from .prompts import tokenize_prompts
from .rollout import Rollout, collate

Reduce = Callable[[Tensor], Tensor]


class Experience(NamedTuple):
    """A rollout that is ready to be learned from, and what is to be logged about it.

    Attributes:
        rollout: The tensors.
        metrics: What to log.
        tokens: Completion tokens over all processes.
        seconds: Time that sampling, scoring and the forward passes took.
        batch: Prompts and completions as text or messages, and the other columns; None in a resumed run.
        scores: Rewards by function; None in a resumed run.
    """

    rollout: Rollout
    metrics: dict[str, float]
    tokens: float
    seconds: float
    batch: Batch | None = None
    scores: Scores | None = None

    def speed(self, seconds_of_learning: float) -> float:
        """Completion tokens a second, with the time that learning from all of them takes."""
        return self.tokens / max(self.seconds + seconds_of_learning, 1e-9)


class Collector:
    """Makes rollouts: prompts, completions, scores, log-probabilities and values, advantages.

    Args:
        sample: Samples one completion for each prompt, given unpadded token ids and a progress function.
        forward: Log-probabilities and values of a part of a rollout, for `role="actor_critic"` or `"reference"`.
        rewards: Scores completions.
        tokenizer: Tokenizer of the policy.
        chat_template_kwargs: Extra arguments of its chat template.
        micro_batches: Sizes of the forward passes.
        missing_eos_penalty: As in `PPOConfig`.
        importance_sampling_cap: As in `PPOConfig`; None: no correction.
        advantages: Options of `add_advantages`.
        reduce: Sums a tensor over processes.
        device: Where rollouts lie.
    """

    def __init__(
        self,
        sample: Callable[[list[list[int]], Callable[[int], Any]], Completions],
        forward: Callable[..., ForwardOutput],
        rewards: RewardRunner,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template_kwargs: dict[str, Any],
        micro_batches: MicroBatches,
        missing_eos_penalty: float | None,
        importance_sampling_cap: float | None,
        advantages: AdvantageOptions,
        reduce: Reduce,
        device: torch.device,
    ):
        self.sample, self.forward, self.rewards, self.tokenizer = sample, forward, rewards, tokenizer
        self.chat_template_kwargs = chat_template_kwargs
        self.micro_batches = micro_batches
        self.missing_eos_penalty = missing_eos_penalty
        self.importance_sampling_cap = importance_sampling_cap
        self.advantages = advantages
        self.reduce, self.device = reduce, device

    def collect(
        self, rows: list[dict[str, Any]], progress: PhaseProgress, *, kl_coef: float, state: Any, training: bool
    ) -> Experience:
        """Make a rollout.

        Args:
            rows: Rows of the dataset, with a column "prompt".
            progress: Times and shows the phases.
            kl_coef: Coefficient of the KL penalty.
            state: The trainer's state, for reward functions.
            training: Whether stateful reward functions keep what they learn from this batch.

        Raises:
            RuntimeError: when too many samples cannot be scored, or log-probabilities or values are not finite.
        """
        progress.take_seconds()
        prompts = [row["prompt"] for row in rows]
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        with together("Sampling"):
            rollout, completions, completion_ids, engine_logps = self._generate(prompts, columns, progress)
        scores = self._score(rollout, prompts, completions, completion_ids, columns, progress, state, training)
        entropy, last_values = self._forward_passes(rollout, progress)
        check_finite(rollout, self.reduce, state.global_step)
        if self.importance_sampling_cap is not None and engine_logps is not None:
            rollout.weights = importance_weights(rollout, engine_logps, cap=self.importance_sampling_cap)
        add_advantages(rollout, last_values, self.advantages, kl_coef=kl_coef, reduce=self.reduce)

        metrics = describe(rollout, scores, self.rewards.names, entropy, reduce=self.reduce)
        if self.importance_sampling_cap is None:
            metrics.pop("importance_weight")
        seconds = progress.take_seconds()
        metrics |= {"kl_coef": kl_coef} | {f"time/{phase}": s for phase, s in seconds.items()}
        columns.pop("prompt")
        batch = Batch(prompts, completions, completion_ids, columns)
        tokens = float(self.reduce(rollout.completion_mask.sum()))
        return Experience(rollout, metrics, tokens, sum(seconds.values()), batch, scores)

    def _generate(
        self, prompts: list[Any], columns: dict[str, list], progress: PhaseProgress
    ) -> tuple[Rollout, list[Any], list[list[int]], list[list[float]] | None]:
        """Sample one completion for each prompt."""
        prompt_ids = tokenize_prompts(prompts, self.tokenizer, self.chat_template_kwargs, columns)
        with progress.phase("generate", total=len(prompts)) as advance:
            out = self.sample(prompt_ids, advance)
        texts = decode_answers(self.tokenizer, prompts, prompt_ids, out.ids, self.chat_template_kwargs)
        pad = self.tokenizer.pad_token_id
        rollout = collate(prompt_ids, out.ids, out.terminated, pad_token_id=pad, device=self.device)
        return rollout, as_completions(prompts, texts), out.ids, out.logps

    def _score(
        self,
        rollout: Rollout,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        columns: dict[str, list],
        progress: PhaseProgress,
        state: Any,
        training: bool,
    ) -> Scores:
        """Call the reward functions and fill in `scores` and `valid`."""
        with progress.phase("score", total=len(prompts) * len(self.rewards.names)) as advance:
            scores = self.rewards(
                prompts,
                completions,
                completion_ids,
                columns,
                trainer_state=state,
                on_progress=advance,
                update_state=training,
                together=together,
            )
        rollout.valid = scores.valid.to(self.device)
        rollout.completion_mask &= rollout.valid.unsqueeze(1)
        rollout.scores = scores.total.to(self.device)
        if self.missing_eos_penalty is not None:
            rollout.scores = rollout.scores - self.missing_eos_penalty * ~rollout.terminated
        return scores

    @torch.no_grad()
    def _forward_passes(self, rollout: Rollout, progress: PhaseProgress) -> tuple[Tensor, Tensor]:
        """Fill in log-probabilities and values from the training path, in the micro-batches of the first pass.

        Returns:
            Entropies, shape (N, C), and the values of the states after the last tokens, shape (N,).
        """
        shape = rollout.completion_mask.shape
        parts = {name: torch.zeros(shape, device=self.device) for name in ("old", "ref", "entropy", "value")}
        last_values = torch.zeros_like(rollout.scores)
        with progress.phase("evaluate", total=len(rollout)) as advance:

            def forward(rows: Tensor) -> None:
                batch = rollout.select(rows)
                out = self.forward(batch)
                reference = self.forward(batch, role="reference")
                assert out.values is not None
                width = batch.completion_length
                parts["old"][rows, :width] = out.logps
                parts["ref"][rows, :width] = reference.logps
                parts["entropy"][rows, :width] = out.entropy
                parts["value"][rows, :width] = out.values[:, :-1] * batch.completion_mask
                after_last = last_token_index(batch.completion_mask) + 1
                last_values[rows] = out.values.gather(1, after_last.unsqueeze(1)).squeeze(1)
                advance(len(rows))

            self.micro_batches.run(torch.arange(len(rollout), device=self.device), forward, "in a forward pass over")
        rollout.old_logps, rollout.ref_logps, rollout.old_values = parts["old"], parts["ref"], parts["value"]
        return parts["entropy"], last_values
