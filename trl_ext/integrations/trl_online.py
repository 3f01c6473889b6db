# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""KL controllers inside TRL's GRPOTrainer and RLOOTrainer."""

import warnings
from typing import Any

from transformers import TrainerCallback
from trl import GRPOTrainer, RLOOTrainer

from trl_ext._compat import training_metrics
from trl_ext.kl_control import KLController

# TRL measures the KL only while `beta` is not exactly 0; this little has no effect on a float32 loss.
_SMALLEST_BETA = 1e-30
# Not the name of the class: transformers would then try to build a callback from the saved state alone.
_STATE_KEY = "trl_ext.kl_controller"


class KLControllerCallback(TrainerCallback):
    """Lets a KL controller move `beta` of a GRPOTrainer or RLOOTrainer, from the KL measured in every optimizer step.

    Both trainers measure the KL to the reference in nats per token: GRPO in each micro-batch by the k3 estimate (never
    negative), RLOO once per batch of completions by k1. Controllers work in nats per completion. Each measurement is
    therefore multiplied by the mean length of the completions it was taken from, in tokens that the policy wrote:
    exact for RLOO, and for GRPO up to how KL per token and length vary together between micro-batches (with
    `mask_truncated_completions`, truncated completions count as if they had the others' KL per token). The target of a
    controller means the same here as in `PPOTrainer`.

    A measurement counts when its completions are learned from for the first time: in later iterations
    (`num_iterations > 1`) they are no longer samples of the policy. Evaluation is never fed. The new coefficient holds
    from the next optimizer step on (GRPO) or from the next batch of completions on (RLOO). Logs get `kl_coef`, the
    coefficient during the measurement, and `kl_per_completion`, what the controller was fed.

    The controller's state goes into every checkpoint and comes back on resuming.

    ```python
    trainer = GRPOTrainer(model, reward_funcs, args=GRPOConfig(beta=0.05), train_dataset=dataset)
    trainer.add_callback(KLControllerCallback(PIDKL(target=3.0, init_coef=0.05), trainer))
    ```

    Args:
        controller: Takes over from `beta` with the coefficient that it starts with.
        trainer: The trainer whose `beta` it moves; the callback is then added to it.

    Raises:
        TypeError: another kind of trainer.
        ValueError: `beta` was 0 when the trainer was made, so that it has no reference.
    """

    def __init__(self, controller: KLController, trainer: GRPOTrainer | RLOOTrainer):
        if not isinstance(trainer, GRPOTrainer | RLOOTrainer):
            raise TypeError(f"`trainer` is a {type(trainer).__name__}; give a GRPOTrainer or an RLOOTrainer.")
        if trainer.args.beta == 0.0:
            raise ValueError(
                f"`beta` was 0 when this {type(trainer).__name__} was made, so it has no reference model and measures "
                "no KL; make it with any other `beta` (say 0.001), the controller then replaces it."
            )
        self.controller = controller
        self._trainer = trainer
        self._per_batch = 1 if isinstance(trainer, RLOOTrainer) else trainer.args.steps_per_generation
        self._pending = (
            0  # measurements still to come of the latest batch of completions, before it is learned from again
        )
        self._length = 0.0  # mean length of its completions
        self._read = (0, 0)  # how many lengths and KLs of TRL's lists have been seen
        self._kls: list[float] = []  # measurements of the current optimizer step, nats per completion

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over `beta`, with the state of the checkpoint if the run goes on from one."""
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
        """Start an optimizer step; TRL empties its lists at every log, so their lengths are taken anew."""
        self._kls = []
        self._read = self._counts()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in a micro-batch."""
        self._take_in()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in the last micro-batch, feed the controller and set `beta`."""
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
        """Note the measurement of the micro-batch just done, if there is one and its completions were new."""
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
        # With `use_liger_kernel`, TRL 1.12 hands `beta` to Liger's fused loss once and for all.
        liger_loss = getattr(self._trainer, "liger_loss", None)
        if liger_loss is not None:
            liger_loss.beta = beta
