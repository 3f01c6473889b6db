# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`CriticLearner`: passes of the critic's own over a rollout, with an optimizer of its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging

from trl_ext.actor_critic import ActorCritic
from trl_ext.experience.collector import Experience
from trl_ext.experience.rollout import Rollout
from trl_ext.experience.seeds import generator_of
from trl_ext.experience.two_critics import critics_of, own_values
from trl_ext.micro_batches import MicroBatches
from trl_ext.monitoring import PhaseProgress, Speed, TokenMeans
from trl_ext.objectives import masked_sum, value_loss
from trl_ext.processes import Reduce

logger = logging.get_logger(__name__)

OPTIMIZER_FILE = "critic_optimizer.safetensors"


@dataclass(frozen=True)
class CriticOptions:
    """Options of the critic's own optimizer steps; fields as in `PPOConfig`."""

    critic_epochs: int | None
    critic_mini_batches: int
    critic_max_grad_norm: float
    cliprange_value: float | None


class CriticLearner:
    """Trains the critic alone, with AdamW over the critic's parameters.

    The value loss is in squared standard deviations of the return (`ReturnScale`), so that the learning rate does not
    depend on the unit of the reward. Completions of held-out prompts are left out. A critic of kind "head" learns from
    hidden states that are computed once, and leaves the policy's trunk alone. Gradients are summed over processes here
    and not by DDP, so the processes may have different numbers of completions.

    Args:
        model: Its critic is trained.
        options: Minibatches, clipping of gradients and values.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        micro_batches: Sizes of the pieces of a minibatch.
        autocast: Context of the precision that the model computes in.
        reduce: Sums a tensor over processes.
    """

    def __init__(
        self,
        model: ActorCritic,
        options: CriticOptions,
        *,
        learning_rate: float,
        weight_decay: float,
        micro_batches: MicroBatches,
        autocast: Callable[[], AbstractContextManager],
        reduce: Reduce,
    ):
        self.model, self.options, self.learning_rate = model, options, learning_rate
        self.micro_batches, self.autocast, self.reduce = micro_batches, autocast, reduce
        self.parameters = dict(model.critic_parameters())
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=learning_rate, weight_decay=weight_decay)

    def set_learning_rate(self, factor: float) -> None:
        """Set the learning rate to a multiple of that of the beginning."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor

    @torch.no_grad()
    def values(self, batch: Rollout) -> Tensor:
        """Return the values of the states before the tokens of a part of a rollout, in units of the reward, (B, C)."""
        found = torch.zeros_like(batch.returns)

        def compute(rows: Tensor) -> None:
            piece = batch.select(rows).to(self.model.device)
            states, so_far = self._critic_states(piece)[:, :-1], _before_tokens(piece)
            found[rows, : piece.completion_length] = self.model.values(states, rewards_so_far=so_far).to(found)

        self.model.eval()
        self.micro_batches.run(batch.first_pass(1), compute, "in a forward pass over", batch.lengths)
        return found

    # ---- passes ----

    def learn_from(self, experience: Experience, seed: tuple[int, int], progress: PhaseProgress) -> Experience:
        """Make `critic_epochs` passes over a fresh rollout, and return the experience with their metrics and time."""
        assert self.options.critic_epochs is not None
        with progress.phase("critic"), self.model.hold():
            learned = self.learn(experience.rollout, self.options.critic_epochs, seed)
        seconds = progress.take_seconds()["critic"]
        speed = Speed(experience.speed.tokens, experience.speed.seconds + seconds)
        return experience._replace(metrics=experience.metrics | learned | {"time/critic": seconds}, speed=speed)

    def learn(
        self, rollout: Rollout, epochs: int, seed: tuple[int, ...], on_step: Callable[[], object] = lambda: None
    ) -> dict[str, float]:
        """Make passes over a rollout.

        Args:
            rollout: With `returns` and `old_values`; on any device.
            epochs: Number of passes.
            seed: Seed of the order of the completions, which differs from pass to pass.
            on_step: Called before every optimizer step.

        Returns:
            Means over tokens and passes of `value_loss`, in squared standard deviations of the return, and
            `value_clip_fraction`; the mean over steps of `critic_grad_norm`, before clipping, and the fraction of
            `critic_skipped_steps`, whose loss or gradient was not finite.
        """
        self.model.train()
        rollout = replace(rollout, ref_states=None)  # large, and not read here
        means, norms = TokenMeans(), []
        rows = torch.nonzero(rollout.valid & ~rollout.held_out).squeeze(1)
        states = self._states_of_head(rollout) if self.model.critic_kind == "head" else None
        generator = generator_of(*seed)
        for _ in range(epochs):
            order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
            for part in order.tensor_split(self.options.critic_mini_batches):  # as many on every process
                on_step()
                norms.append(self._step(rollout, part, states, means))
        finite = [norm for norm in norms if norm is not None]
        metrics = means.take(self.reduce) | {"critic_skipped_steps": 1 - len(finite) / len(norms)}
        return metrics | ({"critic_grad_norm": sum(finite) / len(finite)} if finite else {})

    @torch.no_grad()
    def _states_of_head(self, rollout: Rollout) -> Tensor:
        """Return the hidden states before each completion token, on the CPU, (N, C, D): they do not fit a small GPU."""
        states: Tensor | None = None

        def compute(rows: Tensor) -> None:
            nonlocal states
            batch = rollout.select(rows).to(self.model.device)
            found = self._critic_states(batch)[:, :-1].cpu()
            if states is None:
                states = found.new_zeros(*rollout.completion_mask.shape, found.shape[-1])
            states[rows.cpu(), : batch.completion_length] = found

        self.micro_batches.run(rollout.first_pass(1), compute, "in a forward pass over", rollout.lengths)
        assert states is not None
        return states

    def _critic_states(self, batch: Rollout) -> Tensor:
        with self.autocast():
            return self.model.critic_states(batch.input_ids, batch.attention_mask, batch.completion_mask)

    def _step(self, rollout: Rollout, rows: Tensor, states: Tensor | None, means: TokenMeans) -> float | None:
        """Take one optimizer step on the samples `rows`; return the norm of its gradient, None if it is not finite."""
        tokens = self.reduce(rollout.completion_mask[rows].sum().float().to(self.model.device))
        if tokens == 0:
            return 0.0
        measured: list[tuple[dict[str, Tensor], Tensor]] = []

        def add_gradients() -> None:
            self.optimizer.zero_grad()
            measured.clear()
            pieces = self.micro_batches.split(rollout.by_length(rows), rollout.lengths) if len(rows) else ()
            measured.extend(self._add_gradients(rollout, piece, states, tokens) for piece in pieces)

        while not self.micro_batches.attempt(add_gradients, "training the critic on", learns=True):
            pass
        # A value that is not finite makes the loss NaN and gives no gradient.
        broken = [~torch.isfinite(masked_sum(losses["value_loss"], mask)) for losses, mask in measured]
        norm = self._reduced_norm()
        if self.reduce(torch.stack(broken).sum() if broken else torch.zeros_like(tokens).long()):
            norm = None
        if norm is None:
            logger.warning("Critic: minibatch skipped, its loss or gradient is not finite.")
        else:
            self.optimizer.step()
            for losses, mask in measured or [_nothing(tokens.device)]:
                means.add(losses, mask)
        self.optimizer.zero_grad()
        return norm

    def _add_gradients(
        self, rollout: Rollout, rows: Tensor, states: Tensor | None, tokens: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Add the gradients of some samples of a minibatch of `tokens` tokens; return token losses and their mask."""
        batch, std = rollout.select(rows).to(self.model.device), self.model.return_scale.std
        width = batch.completion_length
        if states is None:
            hidden = self._critic_states(batch)[:, :-1]
        else:
            hidden = states[rows.to(states.device), :width].to(batch.returns.device)
        critics = critics_of(batch) if self.model.num_critics > 1 else None
        losses, clipped = value_loss(
            self.model.values(hidden, critics, _before_tokens(batch)) / std,
            own_values(batch.old_values, batch.value_gap, batch) / std,
            batch.returns / std,
            cliprange_value=self.options.cliprange_value,
        )
        parameters = list(self.parameters.values())
        loss = masked_sum(losses, batch.completion_mask) / tokens
        # `backward` would run the hooks of DDP, which waits for the gradients of a pass of its own.
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return {"value_loss": losses.detach(), "value_clip_fraction": clipped.float()}, batch.completion_mask

    def _reduced_norm(self) -> float | None:
        """Sum the gradients over processes and clip them; return their norm before, or None where it is not finite."""
        parameters = list(self.parameters.values())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(self.reduce(parameter.grad))
        norm = nn.utils.clip_grad_norm_(parameters, self.options.critic_max_grad_norm)
        return float(norm) if torch.isfinite(norm) else None

    # ---- checkpoints ----

    def save(self, folder: Path) -> None:
        """Write the state of the optimizer into a checkpoint."""
        state = {
            f"{name}/{key}": value.contiguous()
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        save_file(state, folder / OPTIMIZER_FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        state: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(folder / OPTIMIZER_FILE).items():
            name, _, part = key.rpartition("/")
            state.setdefault(name, {})[part] = value
        numbers = {name: i for i, name in enumerate(self.parameters)}
        self.optimizer.load_state_dict(
            {
                "state": {numbers[name]: parts for name, parts in state.items()},
                "param_groups": self.optimizer.state_dict()["param_groups"],
            }
        )


def _nothing(device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Return the losses of a process without a sample: the sums over processes need every name on each of them."""
    nothing = torch.zeros(1, 1, device=device)
    return {"value_loss": nothing, "value_clip_fraction": nothing}, nothing.bool()


def _before_tokens(batch: Rollout) -> Tensor | None:
    """Return the reward of what was written before each token, (B, C); None for a critic that does not read it."""
    return None if batch.rewards_so_far is None else batch.rewards_so_far[:, :-1]
