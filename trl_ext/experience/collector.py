# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`Collector`: makes a rollout, from prompts to advantages."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trl_ext.actor_critic import ActorCritic, ForwardOutput
from trl_ext.actor_critic.return_scale import has_learned
from trl_ext.kl_control import KLController
from trl_ext.micro_batches import MicroBatches
from trl_ext.monitoring import PhaseProgress, SampleTable, Speed, observe_rollout
from trl_ext.monitoring.samples import earned_most
from trl_ext.objectives import explained_variance, last_token_index, masked_mean
from trl_ext.objectives.explained import position_moments
from trl_ext.processes import Reduce, own_rows, together
from trl_ext.rewards import RewardRunner, Scores
from trl_ext.rewards.base import Batch
from trl_ext.sharding import whole, written
from trl_ext.text.decoding import as_completions, decode_answers
from trl_ext.text.rows import Text

from .advantages import (
    AdvantageOptions,
    add_advantages,
    add_logged,
    check_finite,
    describe,
    monte_carlo_returns,
    named_rewards,
    scored_by,
    warn_of_equal_rewards,
)
from .ahead import RolloutAhead
from .engine_gap import GapOptions, correct
from .engines import Completions, GenerationEngine, asynchronous, close, weights_changed
from .prompt_hash import held_out_prompts
from .prompts import split_columns, tokenize_prompts
from .rollout import Rollout, collate
from .so_far import RewardsSoFar


class Experience(NamedTuple):
    """A rollout that is ready to be learned from, with its texts, scores and metrics.

    Attributes:
        rollout: The tensors.
        batch: Prompts and completions as text or messages, and the other columns; without the rows that fill up the
            last batch of an evaluation.
        scores: Rewards by function of the same samples.
        metrics: What to log.
        speed: Completion tokens, and the time that they took.
        counts: Of an evaluation: samples of all processes behind a metric, where they are not all that were scored.
        moments: Of an evaluation: `position_moments` of the returns and of the Monte-Carlo returns, (2, 5, C).
    """

    rollout: Rollout
    batch: Batch
    scores: Scores
    metrics: dict[str, float]
    speed: Speed
    counts: dict[str, float] = {}  # noqa: RUF012 (never changed)
    moments: Tensor | None = None


class Collector:
    """Makes rollouts: prompts, completions, scores, log-probabilities and values, advantages.

    Args:
        engine: Samples completions.
        forward: `forward(model, batch, role=...)`: log-probabilities and values of a part of a rollout.
        rewards: Scores completions.
        tokenizer: Tokenizer of the policy.
        kl_controller: Gives the coefficient of the KL penalty, and is told the KL of every rollout of training.
        samples: Table that the rollouts of training are written into.
        prompt_column: As in `PPOConfig`.
        chat_template_kwargs: Extra arguments of the tokenizer's chat template.
        micro_batches: Sizes of the forward passes.
        num_mini_batches: Optimizer steps of a pass over a rollout.
        missing_eos_penalty: As in `PPOConfig`.
        engine_gap: Options of the correction for the engine's log-probabilities; None: no correction.
        ahead: Samples the next rollout while the policy learns from one, where that is asked for.
        advantages: Options of `add_advantages`.
        held_out: Share of the prompts from which the critic must not learn.
        scale_returns: Whether the critic's `ReturnScale` follows the returns of training.
        so_far: Scores the beginnings of completions, for a critic that reads rewards; None for another.
        accelerator: Gives the device of the rollouts, and the precision of sampling.
        reduce: Sums a tensor over processes.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        forward: Callable[..., ForwardOutput],
        rewards: RewardRunner,
        tokenizer: PreTrainedTokenizerBase,
        kl_controller: KLController,
        samples: SampleTable,
        *,
        prompt_column: str,
        chat_template_kwargs: dict[str, Any],
        micro_batches: MicroBatches,
        num_mini_batches: int,
        missing_eos_penalty: float | None,
        engine_gap: GapOptions | None,
        ahead: RolloutAhead,
        advantages: AdvantageOptions,
        held_out: float,
        scale_returns: bool,
        so_far: RewardsSoFar | None,
        accelerator: Accelerator,
        reduce: Reduce,
    ):
        self.engine, self.forward, self.rewards, self.tokenizer = engine, forward, rewards, tokenizer
        self.kl_controller, self.samples = kl_controller, samples
        self.prompt_column = prompt_column
        self.chat_template_kwargs = chat_template_kwargs
        self.micro_batches, self.num_mini_batches = micro_batches, num_mini_batches
        self.missing_eos_penalty = missing_eos_penalty
        self.engine_gap, self.ahead = engine_gap, ahead
        self.advantages = advantages
        self.held_out, self.scale_returns = held_out, scale_returns
        self.so_far = so_far
        self.accelerator, self.reduce = accelerator, reduce

    def collect(
        self,
        model: ActorCritic,
        rows: list[dict[str, Any]],
        progress: PhaseProgress,
        *,
        callbacks: Iterable[Any],
        state: Any,
        training: bool,
        policy_learns: bool = True,
    ) -> Experience:
        """Make a rollout.

        Args:
            model: The policy, its reference and critic; left in eval mode.
            rows: Rows of the dataset.
            progress: Times and shows the phases.
            callbacks: The trainer's; those with an `on_rollout` are shown the scored batch.
            state: The trainer's state, for reward functions and callbacks.
            training: Whether the rollout is one of training. Otherwise stateful reward functions, the KL controller,
                the multipliers of constraints and the sample table stay as they are.
            policy_learns: Whether the policy learns from it. While the critic alone does, the KL and the bounds cannot
                follow what controls them: a controller with a target and the multipliers stay as they are.

        Raises:
            RuntimeError: when too many samples cannot be scored, or log-probabilities or values are not finite.
        """
        model.eval()
        progress.take_seconds()
        kl_coef = self.kl_controller.coef
        # 1. to 3. Prompts to tokens, generate, decode.
        with whole(model):
            rollout, batch, sampled = self._sample(model, rows, progress, state if training else None)
            if not training:
                batch = batch.select(range(own_rows(self.accelerator, len(batch))))
            # 4. Score; reward adapters read the policy's base.
            scores = self._score(rollout, batch, progress, state, training)
            if self.so_far is not None:
                self.so_far.fill(rollout, batch, scores, progress, state)
        # 5. Log-probabilities, KL and values.
        order = rollout.first_pass(self.num_mini_batches if training else 1)
        with whole(model, fsdp=False):  # FSDP gathers for any forward pass, ZeRO-3 for those of its engine
            entropy, last_values, padding = self._forward_passes(model, rollout, order, progress)
        check_finite(rollout, self.reduce, state.global_step)
        # 6. Advantages.
        staleness = self.ahead.staleness if training else 0
        gap = {"engine/staleness": float(staleness)} if training and self.ahead.is_on else {}
        if self.engine_gap is not None:
            options: dict[str, Any] = {"reduce": self.reduce, "step": state.global_step, "stale": staleness > 0}
            gap |= correct(rollout, sampled.logps, self.engine_gap, **options)
        held_out = self._add_advantages(model, rollout, last_values, kl_coef, training)
        moments = None if training else self._moments(rollout, last_values, kl_coef)
        # 7. Metrics, of callbacks and reward functions too.
        metrics = describe(
            rollout,
            scores,
            self.rewards.names,
            entropy,
            rewards=self._penalized(scores.total, rollout),
            count=len(batch),
            weighted=self.engine_gap is not None,
            reduce=self.reduce,
        )
        seconds = progress.take_seconds()
        metrics |= gap | held_out | {"kl_coef": kl_coef, "padding_fraction": padding}
        metrics |= {f"time/{phase}": s for phase, s in seconds.items()}
        speed = Speed(float(self.reduce(rollout.completion_mask.sum())), sum(seconds.values()))
        kl = metrics["kl"]
        by_function = scores.per_function.to(rollout.scores.device)
        metrics |= self.rewards.constraints.observe(by_function, self.reduce, training=training and policy_learns)
        metrics |= observe_rollout(callbacks, batch, scores, metrics, state=state, training=training)
        # 8. The next coefficient, and the table of samples.
        if training:
            if policy_learns or not hasattr(self.kl_controller, "target"):
                self.kl_controller.update(kl, int(self.reduce(rollout.valid.sum())))
            named = named_rewards(scores, self.rewards.names)
            advantages = masked_mean(rollout.advantages, rollout.completion_mask, dim=1).tolist()
            extra = dict(scores.extra)
            if scores.tokens is not None:
                extra["earned most"] = earned_most(scores.tokens, batch.completion_ids or [], self.tokenizer)
            self.samples.fill(batch.prompts, batch.completions, named, advantages, state.global_step, extra)
        metrics = add_logged(metrics, scores, self.rewards.warned)
        if training:
            warn_of_equal_rewards(metrics, scores, self.rewards.warned)
        counts = {} if training else scored_by(by_function, self.rewards.names, self.reduce)
        return Experience(rollout, batch, scores, metrics, speed, counts, moments)

    def collect_for_critic(
        self, model: ActorCritic, rows: list[dict[str, Any]], progress: PhaseProgress, *, state: Any
    ) -> Rollout:
        """Make completions with Monte-Carlo returns, for the pretraining of the critic.

        Rewards are those of training, and stateful reward functions take note of them. The policy is still its own
        reference: there is no KL to be part of the returns, and none to tell its controller. Callbacks are not called.

        Args:
            model: The policy; left in eval mode.
            rows: Rows of the dataset.
            progress: Times and shows the phases.
            state: The trainer's state, for reward functions.

        Returns:
            A rollout with `returns`, and without log-probabilities, values and advantages.
        """
        model.eval()
        rollout, batch, _ = self._sample(model, rows, progress)
        scores = self._score(rollout, batch, progress, state, True)
        if self.so_far is not None:
            self.so_far.fill(rollout, batch, scores, progress, state)
        after_last = torch.zeros_like(rollout.scores)
        rollout.returns = monte_carlo_returns(rollout, after_last, self.advantages, kl_coef=0.0, reduce=self.reduce)
        return rollout

    def close(self) -> None:
        """Close the engine; it starts again when a rollout asks for it."""
        self.ahead.close(partial(close, self.engine))

    def _sample(
        self, model: ActorCritic, rows: list[dict[str, Any]], progress: PhaseProgress, state: Any = None
    ) -> tuple[Rollout, Batch, Completions]:
        """Return completions as a rollout and as texts, and as the engine returned them.

        Args:
            model: The policy.
            rows: Rows of the dataset.
            progress: Times and shows the phase.
            state: The trainer's, for a rollout of training, which may have been sampled ahead; otherwise None.
        """
        with together("Sampling"):
            prompts, columns, prompt_ids = self._read(rows, list(rows[0]))
            with progress.phase("generate", total=len(rows)) as advance, self.accelerator.autocast(), model.hold():
                sampled = self._completions(model, prompt_ids, list(rows[0]), advance, state)
            texts = decode_answers(self.tokenizer, prompts, prompt_ids, sampled.ids, self.chat_template_kwargs)
            batch = Batch(prompts, as_completions(prompts, texts), sampled.ids, columns)
            pad, device = self.tokenizer.pad_token_id, self.accelerator.device
            rollout = collate(prompt_ids, sampled.ids, sampled.terminated, pad_token_id=pad, device=device)
        if self.held_out:
            rollout.held_out = held_out_prompts(rollout, self.held_out)
        return rollout, batch, sampled

    def _read(
        self, rows: list[dict[str, Any]], names: list[str]
    ) -> tuple[list[Text], dict[str, list[Any]], list[list[int]]]:
        """Return the prompts of rows, their other columns among `names`, and the prompts as tokens."""
        prompts, columns = split_columns({name: [row[name] for row in rows] for name in names}, self.prompt_column)
        return prompts, columns, tokenize_prompts(prompts, self.tokenizer, self.chat_template_kwargs, columns)

    def _completions(
        self,
        model: ActorCritic,
        prompt_ids: list[list[int]],
        names: list[str],
        advance: Callable[..., Any],
        state: Any,
    ) -> Completions:
        """Return completions, and begin those of the next rollout where they are sampled ahead."""
        weights_changed(self.engine)  # by a step, by an average in their place, or by loading: always say so
        if state is None or not self.ahead.is_on:
            self.ahead.finish()  # an evaluation gives the engine other weights
            return self.engine(model.causal_lm, prompt_ids, advance)
        engine, step = asynchronous(self.engine), state.global_step
        sampled = self.ahead.take(prompt_ids, step, advance) or engine(model.causal_lm, prompt_ids, advance)
        if (rows := self.ahead.next_rows(state)) is not None:
            self.ahead.begin(engine, model.causal_lm, self._read(rows, names)[2], step)
        return sampled

    def _add_advantages(
        self, model: ActorCritic, rollout: Rollout, last_values: Tensor, kl_coef: float, training: bool
    ) -> dict[str, float]:
        """Fill in advantages and returns; let the scale of returns follow; return metrics of the held-out prompts."""
        options: dict[str, Any] = {"options": self.advantages, "kl_coef": kl_coef, "reduce": self.reduce}
        add_advantages(rollout, last_values, **options)
        if not training or not (self.scale_returns or self.held_out):
            return {}
        returns, mask = monte_carlo_returns(rollout, last_values, **options), rollout.completion_mask
        if self.scale_returns:
            head, scale = model.value_head, model.return_scale
            with written(model):
                scale.update(head, returns, mask, self.reduce)
            if not has_learned(head, self.reduce):  # an untrained critic predicts the mean at once
                rollout.old_values = torch.where(mask, scale.mean, 0.0)
                add_advantages(rollout, scale.mean.expand_as(last_values), **options)
        few = self.reduce((rollout.held_out & rollout.valid).sum()) < 2
        held_out = mask & rollout.held_out.unsqueeze(1)
        explained = explained_variance(rollout.old_values, returns, held_out, self.reduce)
        return {} if few else {"explained_variance/held_out": float(explained)}

    def _moments(self, rollout: Rollout, last_values: Tensor, kl_coef: float) -> Tensor:
        """Return the moments of returns and of Monte-Carlo returns by position, over all processes, (2, 5, C)."""
        options: dict[str, Any] = {"options": self.advantages, "kl_coef": kl_coef, "reduce": self.reduce}
        targets = rollout.returns, monte_carlo_returns(rollout, last_values, **options)
        moments = [position_moments(rollout.old_values, target, rollout.completion_mask) for target in targets]
        width = int(self.reduce(torch.tensor(rollout.completion_length, device=rollout.returns.device), "max"))
        padding = (0, width - rollout.completion_length)
        return self.reduce(torch.nn.functional.pad(torch.stack(moments), padding))

    def _score(self, rollout: Rollout, batch: Batch, progress: PhaseProgress, state: Any, training: bool) -> Scores:
        """Call the reward functions and fill in `scores`, `token_scores` and `valid`.

        The batch may lack the last rows of the rollout, which then are not valid.
        """
        with progress.phase("score", len(batch) * len(self.rewards.names), "rewards") as advance:
            scores = self.rewards(
                batch.prompts,
                batch.completions,
                batch.completion_ids or [],
                batch.columns,
                trainer_state=state,
                on_progress=advance,
                update_state=training,
                together=together,
            )
        rollout.valid[len(batch) :] = False
        rollout.valid[: len(batch)] = scores.valid.to(rollout.valid.device)
        rollout.completion_mask &= rollout.valid.unsqueeze(1)
        totals = scores.total if scores.learned is None else scores.learned
        if scores.tokens is not None:
            rollout.token_scores[: len(batch), : scores.tokens.shape[1]] = scores.tokens.to(rollout.token_scores)
            totals = torch.zeros_like(totals)
        rollout.scores = self._penalized(totals, rollout)
        return scores

    def _penalized(self, totals: Tensor, rollout: Rollout) -> Tensor:
        """Return totals, (N,), less the penalty of completions that did not end by themselves; missing ones are 0."""
        totals = torch.nn.functional.pad(totals.to(rollout.scores.device), (0, len(rollout) - len(totals)))
        if self.missing_eos_penalty is None:
            return totals
        return totals - self.missing_eos_penalty * ~rollout.terminated

    @torch.no_grad()
    def _forward_passes(
        self, model: ActorCritic, rollout: Rollout, order: Tensor, progress: PhaseProgress
    ) -> tuple[Tensor, Tensor, float]:
        """Fill in log-probabilities, KL and values from the training path, in the micro-batches of the first pass.

        Args:
            model: The policy, its reference and critic.
            rollout: Filled in.
            order: All samples, as `Rollout.first_pass` orders them.
            progress: Shows how many are done.

        Returns:
            Entropies, shape (N, C); the values of the states after the last tokens, shape (N,); and the share of the
            columns that were padding, over all processes.
        """
        entropy, last_values = torch.zeros_like(rollout.old_logps), torch.zeros_like(rollout.scores)
        computed = torch.zeros_like(rollout.attention_mask[0, 0])  # columns of all rows, padding included
        with progress.phase("evaluate", total=len(rollout)) as advance:

            def keep(states: Tensor, rows: Tensor, width: int) -> None:
                if rollout.ref_states is None:
                    shape = (*rollout.kl.shape, states.shape[-1])
                    # Autocast may hand out as float32 what a trunk in half precision has computed.
                    rollout.ref_states = torch.zeros(shape, dtype=model.dtype, device=states.device)
                rollout.ref_states[rows, :width] = states.to(model.dtype)

            def forward(rows: Tensor) -> None:
                batch = rollout.select(rows)
                out = self.forward(model, batch, role="with_reference")
                computed.add_(batch.attention_mask.numel())
                assert out.values is not None and out.ref_logps is not None and out.kl is not None
                assert out.ref_states is not None
                width = batch.completion_length
                rollout.old_logps[rows, :width] = out.logps
                rollout.ref_logps[rows, :width] = out.ref_logps
                rollout.kl[rows, :width] = out.kl
                if self.advantages.kl_estimator == "exact":
                    keep(out.ref_states, rows, width)
                rollout.old_values[rows, :width] = out.values[:, :-1] * batch.completion_mask
                if out.value_gap is not None:
                    if rollout.value_gap is None:
                        rollout.value_gap = torch.zeros_like(rollout.old_values)
                    rollout.value_gap[rows, :width] = out.value_gap[:, :-1] * batch.completion_mask
                entropy[rows, :width] = out.entropy
                after_last = last_token_index(batch.completion_mask) + 1
                last_values[rows] = out.values.gather(1, after_last.unsqueeze(1)).squeeze(1)
                advance(len(rows))

            self.micro_batches.run(order, forward, "in a forward pass over", rollout.lengths)
        real, columns = self.reduce(torch.stack([rollout.attention_mask.sum(), computed])).tolist()
        return entropy, last_values, 1 - real / columns
