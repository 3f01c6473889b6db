# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The only file that touches private names of trl, peft, transformers or vLLM, with the reason for each use."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

# The bases of every TRL trainer and configuration: telemetry, model card, defaults. Same names in trl 1.12 and 1.16.
from trl.trainer.base_config import _BaseConfig as BaseConfig
from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer

__all__ = [
    "DICT_FIELDS",
    "AdapterSwitch",
    "BaseConfig",
    "BaseTrainer",
    "compiles_whole",
    "keep_vllm_weights_plain",
    "portable_attention",
    "training_metrics",
]

# Fields that the argument parser may be given as JSON.
DICT_FIELDS = tuple(BaseConfig._VALID_DICT_FIELDS)

AdapterState = list[tuple[list[str] | str, bool]]

# Locks for switching the adapters of a model, by its first adapter layer. Not an attribute of a switch: a model has
# several switches, and modules that hold a switch are copied.
_TURNS: WeakKeyDictionary[torch.nn.Module, Any] = WeakKeyDictionary()
_LOCK = threading.Lock()


class AdapterSwitch:
    """Moves between the adapters of a PEFT model without touching `requires_grad`.

    PEFT's own `set_adapter` and `disable_adapter` also flip `requires_grad`, which silently drops the gradients of the
    inactive adapter. This class sets only the two attributes that PEFT's layers read in `forward`. On a model without
    adapters every method does nothing.

    Blocks under an adapter (`use`) and blocks that need the policy's own (`hold`) exclude each other between threads,
    also through several switches of the same layers.

    Args:
        model: The model. Adapters added later to the same layers are included, new adapter layers are not.
    """

    def __init__(self, model: torch.nn.Module):
        self._layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Run a block during which no other thread switches adapters; wait for a thread that does."""
        if not self._layers:
            yield
            return
        with _LOCK:
            turn = _TURNS.setdefault(self._layers[0], threading.RLock())
        with turn:
            yield

    def state(self) -> AdapterState:
        """Return the active adapters, for `restore`."""
        return [(layer._active_adapter, layer._disable_adapters) for layer in self._layers]

    def restore(self, state: AdapterState) -> None:
        """Activate the adapters that `state` returned."""
        for layer, (active, disabled) in zip(self._layers, state, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Run a block under the adapter `name`, or with adapters off (`None`), and restore the state afterwards."""
        with self.hold(), self.under(self.only(name)):
            yield

    def only(self, name: str | None) -> AdapterState:
        """Return the state in which the adapter `name` is active, or none (`None`)."""
        return [(active if name is None else [name], name is None) for active, _ in self.state()]

    @contextmanager
    def under(self, state: AdapterState) -> Iterator[None]:
        """Run a block with the adapters of `state` active, and restore the present state afterwards."""
        before = self.state()
        try:
            self.restore(state)
            yield
        finally:
            self.restore(before)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Return the `context_fn` pair of `torch.utils.checkpoint`: recompute under the adapter of the forward pass.

        Recomputation runs during backward, otherwise under the adapter that is active *then*; with two adapters on one
        base that gives wrong gradients without any error.
        """
        return nullcontext(), self.under(self.state())


def training_metrics(trainer: Any) -> dict[str, list[float]]:
    """Return the measurements of a GRPO or RLOO trainer in training since its last log line, by name.

    Callbacks see only averages over `logging_steps`; a KL controller needs every measurement. The trainer averages and
    logs the values that are appended.
    """
    return trainer._metrics["train"]


def compiles_whole(model: torch.nn.Module) -> bool:
    """Return whether a model of transformers is declared to compile as one graph.

    Only such models are tested with a cache of fixed size. `generate` takes one for any other too, and fails at its
    shapes or samples from another distribution.
    """
    return bool(getattr(model, "_can_compile_fullgraph", False))


def keep_vllm_weights_plain() -> None:
    """Have a vLLM that starts on a CPU leave its weights as they are.

    It would pack the float32 weights of every linear layer for oneDNN as it starts, and new weights would never reach
    the packed ones: its samples would come from the old policy without any error.
    """
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False


@contextmanager
def portable_attention(model: torch.nn.Module) -> Iterator[None]:
    """Run a block with transformers' own attention in place of flash-attention kernels.

    Flash-attention kernels refuse tensors on a CPU and float32, which occurs only outside autocast.
    `set_attn_implementation` would look up the kernels again at the end.
    """
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    flash = [c for c in configs.values() if "flash" in str(getattr(c, "_attn_implementation", None))]
    before = [c._attn_implementation for c in flash]
    try:
        for config in flash:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, name in zip(flash, before, strict=True):
            config._attn_implementation = name
