# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""DeepSpeed's ZeRO: an engine that takes an optimizer step only when it is told to, and the state of its optimizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .zero3 import gathering, release, without_hooks

__all__ = ["ZeroEngine", "engine_of", "load_optimizer", "without_engine"]

# The Trainer looks for a folder of this name before it asks an engine to load a checkpoint.
STATES = "global_step"


class ZeroEngine:
    """DeepSpeed's engine of a model in training, in the place of accelerate's wrapper of it.

    Accelerate's steps inside the last backward pass of an optimizer step. This one adds gradients in backward passes,
    and `settle` ends the optimizer step, so that a decision about the step can be taken from all of its losses. It
    knows the optimizers of ZeRO-1 and 2, which are one, and of ZeRO-3.

    A checkpoint holds whole weights, as those of every other run, and here the state of the optimizer alone: of each
    process its own part, in float32.

    Args:
        engine: A `DeepSpeedEngine` with ZeRO, whose configuration has `managed_gradient_accumulation: false`.
        load_weights: Loads the weights of a checkpoint.
    """

    def __init__(self, engine: Any, load_weights: Callable[[str], object]):
        self.engine, self.zero = engine, engine.optimizer
        self.load_weights = load_weights
        self._norm = 0.0
        self._is_partitioned = engine.zero_optimization_partition_weights()
        # The Trainer calls these two.
        engine.save_checkpoint, engine.load_checkpoint = self.save, self.load

    # ---- what accelerate asks for ----

    def backward(self, loss: Tensor, sync_gradients: bool = True, **options: Any) -> None:
        """Add gradients, and take no step; `sync_gradients` says that accelerate would."""
        self.engine.backward(loss, **options)

    def get_global_grad_norm(self) -> float:
        """Return the norm of the gradients of the last step, before they were clipped; 0 where it was not taken."""
        return self._norm

    # ---- steps ----

    def settle(self, *, learns: bool, idle: bool) -> bool:
        """End an optimizer step: sum the gradients over processes, clip them, and take the step or drop them.

        DeepSpeed calls the step of the torch optimizer, into which the caller has put a gate, and takes no step by
        gradients that are not finite.

        Args:
            learns: Whether the gate is open.
            idle: Whether there was no backward pass.

        Returns:
            Whether the gradients of an open gate were not finite, in any process.
        """
        self._norm = 0.0
        if idle:
            return False
        self.engine.step()
        if self._is_partitioned:
            # A weight without a gradient in the first backward pass of a step would add to that of the step before.
            self.zero.grad_partitions_flat_buffer.zero_()
        broken = bool(self.zero.overflow)
        if learns and not broken:
            self._norm = float(self.engine.get_global_grad_norm())
        return learns and broken

    def refresh(self) -> None:
        """Have the optimizer start from the model's weights, after something other than a step has changed them."""
        self.zero.refresh_fp32_params()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Have every process hold all weights for the length of a block that does not change them; a collective."""
        if not self._is_partitioned:
            yield
            return
        model = self.engine.module
        release(model)
        with without_hooks(self.zero.parameter_offload), gathering(model.parameters()):
            yield

    # ---- checkpoints ----

    @property
    def _parts(self) -> list[Tensor]:
        """This process's part of the trained weights, flat in float32; the torch optimizer has the state of each."""
        zero = self.zero
        parts: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self._is_partitioned else zero.single_partition_of_fp32_groups
        )
        return parts

    def save(self, folder: str | Path, **_: Any) -> None:
        """Write this process's state of the optimizer into a checkpoint, in the place of `save_checkpoint`."""
        optimizer = self.zero.optimizer
        tensors = {
            f"{i}/{key}": value.contiguous()
            for i, part in enumerate(self._parts)
            for key, value in optimizer.state.get(part, {}).items()
            if isinstance(value, Tensor)
        }
        rates = [group["lr"] for group in optimizer.param_groups]
        tensors["rates"] = torch.tensor(rates, dtype=torch.float64)
        file = _state_file(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file)

    def load(self, folder: str | Path, **_: Any) -> tuple[str, dict[str, Any]]:
        """Load the weights of a checkpoint, in the place of `load_checkpoint`; `load_optimizer` does the rest."""
        self.load_weights(str(folder))
        return str(folder), {}

    def load_optimizer(self, folder: str | Path) -> None:
        """Read what `save` wrote."""
        optimizer, tensors = self.zero.optimizer, load_file(_state_file(folder))
        for group, rate in zip(optimizer.param_groups, tensors.pop("rates").tolist(), strict=True):
            group["lr"] = rate
        parts = self._parts
        for name, value in tensors.items():
            number, _, key = name.partition("/")
            part = parts[int(number)]
            # Torch keeps the counter of steps on the CPU.
            optimizer.state[part][key] = value if value.dim() == 0 else value.to(part.device)


def _state_file(folder: str | Path) -> Path:
    return Path(folder) / STATES / f"optimizer_{torch.distributed.get_rank()}.safetensors"


def load_optimizer(model: nn.Module, folder: Path) -> None:
    """Load a process's state of the optimizer from a checkpoint, where DeepSpeed trains the model."""
    if (engine := engine_of(model)) is not None:
        engine.load_optimizer(folder)


def engine_of(model: nn.Module) -> ZeroEngine | None:
    """Return the engine that trains a model; None where DeepSpeed does not."""
    return getattr(model, "zero_engine", None)


def without_engine(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a Trainer do without DeepSpeed before `train`: until then every process has a whole model."""

    @wraps(method)
    def call(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        uses = trainer.is_deepspeed_enabled
        trainer.is_deepspeed_enabled = uses and trainer.deepspeed is not None
        try:
            return method(trainer, *args, **kwargs)
        finally:
            trainer.is_deepspeed_enabled = uses

    return call
