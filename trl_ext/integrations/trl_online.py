# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""KL controllers inside TRL's GRPOTrainer and RLOOTrainer."""

import warnings
from typing import Any

from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from trl_ext._compat import training_metrics
from trl_ext.kl_control import KLController

from .one_number import require_numbers

# TRL measures the KL only while `beta` is not exactly 0; a `beta` this small has no effect on a float32 loss.
_SMALLEST_BETA = 1e-30
# Not the name of the class: transformers would then try to build a callback from the saved state alone.
_STATE_KEY = "trl_ext.kl_controller"


class KLControllerCallback(TrainerCallback):
    """Sets `beta` of a GRPOTrainer or RLOOTrainer by a KL controller, from the KL measured in every optimizer step.

    Both trainers measure the KL to the reference in nats per token: GRPO in each micro-batch by the k3 estimate (never
    negative), RLOO once per batch of completions by k1. Controllers work in nats per completion, so each measurement is
    multiplied by the mean length of its completions, in sampled tokens. The product is exact for RLOO; for GRPO it
    ignores the correlation of KL per token and length between micro-batches (and with `mask_truncated_completions`,
    truncated completions count with the others' KL per token). The controller's target means the same as in
    `PPOTrainer`.

    A measurement counts when its completions are learned from for the first time: in later iterations
    (`num_iterations > 1`) they are no longer samples of the policy. Evaluation does not count. The new coefficient
    applies from the next optimizer step (GRPO) or the next batch of completions (RLOO). Logs get `kl_coef`, the
    coefficient during the measurement, and `kl_per_completion`, the controller's input.

    The controller's state is saved in every checkpoint and restored on resuming.

    ```python
    trainer = GRPOTrainer(model, reward_funcs, args=GRPOConfig(beta=0.05), train_dataset=dataset)
    trainer.add_callback(KLControllerCallback(PIDKL(target=3.0, init_coef=0.05), trainer))
    ```

    Args:
        controller: KL controller, whose coefficient replaces `beta` from the start.
        trainer: The trainer, to which the callback must then be added.

    Raises:
        TypeError: another kind of trainer, or a reward function of its gives token rewards; those that are not known to
            are refused at their first call.
        ValueError: `beta` was 0 when the trainer was made, so that the trainer has no reference.
    """

    def __init__(self, controller: KLController, trainer: GRPOTrainer | RLOOTrainer):
        if not isinstance(trainer, GRPOTrainer | RLOOTrainer):
            raise TypeError(f"`trainer` is a {type(trainer).__name__}; give a GRPOTrainer or an RLOOTrainer.")
        if trainer.args.beta == 0.0:
            raise ValueError(
                f"`beta` was 0 when this {type(trainer).__name__} was made, so it has no reference model and measures "
                "no KL; make it with another `beta` (say 0.001), which the controller then replaces."
            )
        require_numbers(trainer)
        self.controller = controller
        self._trainer = trainer
        self._per_batch = 1 if isinstance(trainer, RLOOTrainer) else trainer.args.steps_per_generation
        self._pending = 0  # measurements to come of the latest batch of completions, in its first iteration
        self._length = 0.0  # mean length of the latest batch's completions
        self._read = (0, 0)  # lengths and KLs of TRL's lists that have been read
        self._kls: list[float] = []  # measurements of the current optimizer step, nats per completion

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set `beta`, after restoring the controller's state from a checkpoint where the run resumes."""
        if _STATE_KEY in state.stateful_callbacks:
            self.controller.load_state_dict(state.stateful_callbacks[_STATE_KEY])
        elif state.global_step > 0:
            warnings.warn(
                "The checkpoint has no state of a KL controller: the run that wrote it had none. This one starts from "
                f"its present coefficient, {self.controller.coef:g}.",
                stacklevel=2,
            )
        self._set_beta()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start an optimizer step; the lengths of TRL's lists are read again, since every log empties them."""
        self._kls = []
        self._read = self._counts()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the measurement of a micro-batch."""
        self._take_in()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the last micro-batch, update the controller and set `beta`."""
        self._take_in()
        if self._kls:
            kl = sum(self._kls) / len(self._kls)
            metrics = training_metrics(self._trainer)
            metrics["kl_coef"].append(self.controller.coef)
            metrics["kl_per_completion"].append(kl)
            episodes = len(self._kls) * self._trainer.args.generation_batch_size // self._per_batch
            self.controller.update(kl, episodes)
            self._set_beta()
        state.stateful_callbacks[_STATE_KEY] = self.controller.state_dict()

    def _take_in(self) -> None:
        """Note the measurement of the last micro-batch, if there is one and its completions are in their first use."""
        metrics, (lengths, kls) = training_metrics(self._trainer), self._counts()
        if lengths > self._read[0]:
            self._length = metrics["completions/mean_length"][-1]
            self._pending = self._per_batch
        if kls > self._read[1] and self._pending:
            self._kls.append(metrics["kl"][-1] * self._length)
            self._pending -= 1
        self._read = (lengths, kls)

    def _counts(self) -> tuple[int, int]:
        metrics = training_metrics(self._trainer)
        return len(metrics.get("completions/mean_length", ())), len(metrics.get("kl", ()))

    def _set_beta(self) -> None:
        beta = max(self.controller.coef, _SMALLEST_BETA)
        self._trainer.beta = beta
        # With `use_liger_kernel`, TRL 1.12 gives `beta` to Liger's fused loss only once, at the start.
        liger_loss = getattr(self._trainer, "liger_loss", None)
        if liger_loss is not None:
            liger_loss.beta = beta
