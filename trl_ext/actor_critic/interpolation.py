# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A policy on the straight line from its reference through its trained weights: a whole frontier from one run."""

import re
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor, nn

from .adapters import plain_config
from .model import ActorCritic

_DOWN, _UP = (".lora_A.", ".lora_embedding_A."), (".lora_B.", ".lora_embedding_B.")
# Kinds of LoRA whose weights are no product of two matrices times a constant.
_OTHER_LORA = (
    "use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "target_parameters",
)  # fmt: skip


class _Ends(NamedTuple):
    """A trained parameter, and its values at 0 and at 1."""

    parameter: nn.Parameter
    start: Tensor
    end: Tensor


class WeightPath:
    """Moves a policy along `reference + eta * (trained - reference)` (WARP's LITI, arXiv 2406.16768, section 3.3).

    At 0 the policy is its reference, at 1 what was trained, bit by bit; beyond 1 it is an extrapolation. Of a LoRA
    adapter on the base the line is that of the weights `W + scale * eta * B A`: only B moves. Where training started
    from an adapter, the line from that one needs the ranks of both, so the policy's adapter gets twice its rank.

    Trained weights are held twice while the path exists: as they are now, and as they were trained. Only the policy
    moves; critic, reference and reward models stay.

    Args:
        model: The trained policy with its reference. Not to be trained further.

    Raises:
        ValueError: for adapters whose change is no multiple of a matrix, such as DoRA.
    """

    def __init__(self, model: ActorCritic):
        self.model = model
        adapted = isinstance(model.policy, PeftModel)
        if adapted:
            check_scalable(model.policy.peft_config[model.actor_adapter])
        if not adapted:
            self._ends = _whole(model)
        elif model.reference_adapter is None:
            self._ends = _from_base(model)
        else:
            self._ends = _from_adapter(model, model.reference_adapter)

    @torch.no_grad()
    def move_to(self, eta: float) -> None:
        """Set the policy's weights to those at `eta`, rounded once."""
        for parameter, start, end in self._ends:
            parameter.copy_(torch.lerp(start, end, eta))  # exact at 0 and 1


def check_scalable(config: PeftConfig) -> None:
    """Check that an adapter's change of the weights can be multiplied by a number.

    Raises:
        ValueError: when it cannot.
    """
    kind = type(config).__name__
    variant = next((name for name in _OTHER_LORA if getattr(config, name, None)), None)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"The adapter is a {kind}; only LoRA and whole models can be interpolated.")
    if variant is not None:
        raise ValueError(
            f"The adapter has `{variant}`, whose change of the weights is no multiple of B A; merge it into its base "
            "(`trl_ext merge`) and interpolate the merged model."
        )


def _trained(model: ActorCritic) -> dict[str, nn.Parameter]:
    """Return the parameters of the policy that were trained, by their names in it."""
    return {name.removeprefix("policy."): parameter for name, parameter in model.actor_parameters()}


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().clone()


def _whole(model: ActorCritic) -> list[_Ends]:
    assert model.reference is not None
    return [_Ends(p, model.reference.get_parameter(name).data, _copy(p)) for name, p in _trained(model).items()]


def _from_base(model: ActorCritic) -> list[_Ends]:
    """Return the ends of an adapter whose reference is the base: B is 0 there, and other modules are the base's."""
    own, ends = model.actor_adapter, []
    for name, parameter in _trained(model).items():
        if any(part in name for part in _DOWN):
            continue
        if any(part in name for part in _UP):
            start = torch.zeros_like(parameter)
        elif f".modules_to_save.{own}." in name:
            start = model.policy.get_parameter(name.replace(f".modules_to_save.{own}.", ".original_module."))
        else:  # rows of chosen tokens
            layer = model.policy.get_submodule(name.rsplit(".trainable_tokens_delta", 1)[0])
            start = layer.trainable_tokens_original[own]
        ends.append(_Ends(parameter, start.detach().to(parameter), _copy(parameter)))
    return ends


def _from_adapter(model: ActorCritic, reference: str) -> list[_Ends]:
    """Return the ends of an adapter that was trained from another, and put both of them into the policy's."""
    policy, own = model.policy, model.actor_adapter
    assert isinstance(policy, PeftModel)
    old = {}
    for name, parameter in _trained(model).items():
        counterpart = re.sub(rf"\.{re.escape(own)}(?=\.|$)", f".{reference}", name)
        old[name] = _copy(policy.get_parameter(counterpart)), _copy(parameter)
    wide = _widened(policy.peft_config[own])
    active = policy.active_adapter
    policy.set_adapter(reference)
    policy.delete_adapter(own)
    policy.add_adapter(own, wide)
    policy.set_adapter(active)
    ends = []
    for name, parameter in _trained(model).items():
        start, end = old[name]
        if any(part in name for part in _DOWN):
            parameter.data.copy_(torch.cat([start, end], 0))
            continue
        if any(part in name for part in _UP) and not name.endswith(".bias"):
            start, end = torch.cat([start, 0 * start], 1), torch.cat([0 * end, end], 1)
        ends.append(_Ends(parameter, start, end))
        parameter.data.copy_(end)
    return ends


def _widened(config: Any) -> LoraConfig:
    """Return a LoRA configuration with twice the ranks, and the same scale of every update."""
    growth = 2**0.5 if config.use_rslora else 2
    ranks = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    alphas = {name: growth * alpha for name, alpha in config.alpha_pattern.items()}
    changes = {"r": 2 * config.r, "lora_alpha": growth * config.lora_alpha}
    return plain_config(config, **changes, rank_pattern=ranks, alpha_pattern=alphas)
