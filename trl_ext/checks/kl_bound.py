# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A bound on the KL among `reward_constraints`: another way to ask for the PID controller of the KL coefficient."""

from typing import Any

from trl_ext.kl_control import kl_bound

__all__ = ["follow_kl_bound"]


def follow_kl_bound(args: Any) -> None:
    """Let `reward_constraints=["kl <= X"]` be `kl_controller="pid"` and `kl_target=X`, in place.

    Raises:
        ValueError: where either of the two says something else.
    """
    bound = kl_bound(args.reward_constraints)
    if bound is None:
        return
    chosen, target = args.kl_controller, args.kl_target
    if chosen not in ("pid", args.__dataclass_fields__["kl_controller"].default):
        raise ValueError(
            f"`reward_constraints` has '{bound}', which the PID controller holds, and `kl_controller` is '{chosen}': "
            "leave one of them out."
        )
    if target is not None and target != bound.bound:
        raise ValueError(
            f"`reward_constraints` has '{bound}' and `kl_target` is {target:g}: give both the same number, or leave "
            "one of them out."
        )
    args.kl_controller, args.kl_target = "pid", bound.bound
