# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""PPO's loss of one micro-batch, token by token."""

from torch import Tensor

from .actor_critic import Evaluation
from .objectives import approx_kl, kl_estimate, policy_loss, value_loss
from .rollout import Rollout

# Arguments of `token_losses` that are fields of `PPOConfig`.
LOSS_OPTIONS = (
    "cliprange",
    "cliprange_high",
    "dual_clip",
    "cliprange_value",
    "vf_coef",
    "entropy_coef",
    "kl_loss_coef",
    "kl_loss_estimator",
)


def token_losses(
    out: Evaluation,
    batch: Rollout,
    *,
    cliprange: float,
    cliprange_high: float | None,
    dual_clip: float | None,
    cliprange_value: float | None,
    vf_coef: float,
    entropy_coef: float,
    kl_loss_coef: float,
    kl_loss_estimator: str,
) -> dict[str, Tensor]:
    """
    The loss of every completion token, and what is logged beside it.

    Args:
        out: What actor and critic say now.
        batch: What they said when the rollout was made, and what came of it.
        cliprange, cliprange_high, dual_clip, cliprange_value: Bounds, as in `PPOConfig`.
        vf_coef, entropy_coef, kl_loss_coef, kl_loss_estimator: Terms of the loss, as in `PPOConfig`.

    Returns:
        Tensors of shape (B, C), not masked. `loss` is what is minimized, the others are parts of it or diagnostics.
    """
    policy, ratio, clipped = policy_loss(
        out.logps,
        batch.old_logps,
        batch.advantages,
        cliprange=cliprange,
        cliprange_high=cliprange_high,
        dual_clip=dual_clip,
    )
    assert out.values is not None
    value, value_clipped = value_loss(
        out.values[:, :-1], batch.old_values, batch.returns, cliprange_value=cliprange_value
    )
    actor = policy * batch.weights - entropy_coef * out.entropy
    if kl_loss_coef > 0:
        actor = actor + kl_loss_coef * kl_estimate(out.logps, batch.ref_logps, kl_loss_estimator)
    return {
        "loss": actor + vf_coef * value,
        "policy_loss": policy,
        "value_loss": value,
        "entropy": out.entropy,
        "approx_kl": approx_kl(out.logps, batch.old_logps),
        "clip_fraction": clipped,
        "value_clip_fraction": value_clipped,
        "ratio/mean": ratio,
        "ratio/max": ratio,
    }
