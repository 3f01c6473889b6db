# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""From scores, log-probabilities and values to advantages and returns, and to the metrics of a rollout."""

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from trl_ext.monitoring.glossary import GLOSSARY
from trl_ext.monitoring.metrics import has_equal_rewards
from trl_ext.objectives import (
    explained_variance,
    gae,
    global_moments,
    kl_estimate,
    length_adaptive_lam,
    masked_sum,
    next_kl,
    token_rewards,
    whiten_with_scale,
)
from trl_ext.processes import Reduce
from trl_ext.rewards import Scores
from trl_ext.rewards.logged import over_processes

from .rollout import Rollout
from .two_critics import disagreement, mask_agreement

# Names that PPOTrainer and the Hugging Face Trainer log beside `describe`'s, some later and not in every line.
_LOGGED_ELSEWHERE = frozenset(
    {metric.name for metric in GLOSSARY if "*" not in metric.name} | {"num_input_tokens_seen"}
)
_LOGGED_ELSEWHERE_UNDER = ("time/", "monitor/")
_EQUAL = "equal rewards"  # no name of a metric


@dataclass(frozen=True)
class AdvantageOptions:
    """Options with which `add_advantages` turns scores into advantages and returns; fields as in `PPOConfig`."""

    kl_estimator: str
    gamma: float
    lam: float
    lam_critic: float | None
    lam_adaptive_alpha: float | None
    bootstrap_truncated: bool
    whiten_rewards: bool
    whiten_advantages: bool
    critic_agreement_share: float


def add_advantages(
    rollout: Rollout, last_values: Tensor, options: AdvantageOptions, *, kl_coef: float, reduce: Reduce
) -> None:
    r"""Fill in `advantages` and `returns`: token rewards, then GAE.

    With `kl_estimator="exact"` the gradient of \(E[r] - \beta\, E[\sum_t \mathrm{KL}_t]\) has two parts. A token
    changes the KL of the states after it: its reward is less by \(\beta \gamma\, \mathrm{KL}_{t+1}\), so that its
    advantage holds \(-\beta \sum_{u>t} \gamma^{u-t} \mathrm{KL}_u\), and values predict the same sum. It does not
    change \(\mathrm{KL}_t\), which depends on the policy directly: that part is a term of the loss, with the
    coefficient `kl_coefs`, scaled as rewards and advantages were by whitening.

    Args:
        rollout: With scores, log-probabilities and values filled in.
        last_values: Values of the states after the last tokens, shape (N,).
        options: Discount, lambdas, bootstrapping and whitening.
        kl_coef: Coefficient of the KL penalty in the reward.
        reduce: Sums a tensor over processes.
    """
    mask, values = rollout.completion_mask, rollout.old_values
    exact, kl_coefs = options.kl_estimator == "exact", torch.full_like(rollout.scores, kl_coef)
    if exact:
        kl = options.gamma * next_kl(rollout.kl, mask)
    else:
        kl = kl_estimate(rollout.old_logps, rollout.ref_logps, options.kl_estimator)
    rewards = token_rewards(rollout.scores, kl, kl_coef, mask, rollout.token_scores)
    if options.whiten_rewards:
        rewards, scale = whiten_with_scale(rewards, mask, shift_mean=False, reduce=reduce)
        kl_coefs = kl_coefs * scale
    bootstrap = last_values * ~rollout.terminated if options.bootstrap_truncated else None
    estimate = partial(gae, rewards, values, mask, gamma=options.gamma, bootstrap_values=bootstrap)
    alpha = options.lam_adaptive_alpha
    advantages = estimate(lam=options.lam if alpha is None else length_adaptive_lam(mask.sum(1), alpha))
    rollout.returns = values + estimate(lam=options.lam if options.lam_critic is None else options.lam_critic)
    if options.whiten_advantages:
        advantages, scale = whiten_with_scale(advantages, mask, reduce=reduce)
        kl_coefs = kl_coefs * scale
    rollout.advantages = advantages
    rollout.kl_coefs = kl_coefs if exact else torch.zeros_like(kl_coefs)
    mask_agreement(rollout, options.critic_agreement_share)


def monte_carlo_returns(
    rollout: Rollout, last_values: Tensor, options: AdvantageOptions, *, kl_coef: float, reduce: Reduce
) -> Tensor:
    """Return the discounted sums of the token rewards that follow each token, (N, C); arguments as in `add_advantages`.

    They contain no value, except that after the last token of a truncated completion with `bootstrap_truncated`.
    """
    copied = replace(rollout)
    options = replace(options, lam=1.0, lam_critic=None, lam_adaptive_alpha=None, whiten_advantages=False)
    add_advantages(copied, last_values, options, kl_coef=kl_coef, reduce=reduce)
    return copied.returns


def check_finite(rollout: Rollout, reduce: Reduce, step: int) -> None:
    """Check that the log-probabilities and values of a fresh rollout are finite; `step` is named in the message.

    Raises:
        RuntimeError: on every process, when one of them has a value that is not finite.
    """
    tensors = {
        "log-probabilities": rollout.old_logps,
        "log-probabilities under the reference": rollout.ref_logps,
        "KL divergences from the reference": rollout.kl,
        "values": rollout.old_values,
    }
    broken = torch.stack([(~torch.isfinite(t) & rollout.completion_mask).sum() for t in tensors.values()])
    counts = dict(zip(tensors, reduce(broken).tolist(), strict=True))
    for name, count in counts.items():
        if count:
            raise RuntimeError(
                f"Step {step}: {count:.0f} {name} of a fresh rollout are not finite, so the weights are broken; "
                "resume from a checkpoint before that with a lower `learning_rate`, in bf16 or float32."
            )


def describe(
    rollout: Rollout,
    scores: Scores,
    reward_names: list[str],
    entropy: Tensor,
    *,
    rewards: Tensor,
    count: int,
    weighted: bool,
    reduce: Reduce,
) -> dict[str, float]:
    """Return the metrics of a rollout.

    Args:
        rollout: Complete.
        scores: Rewards of the samples of this process by function.
        reward_names: Names of the functions.
        entropy: Entropy at each token, nats, shape (N, C).
        rewards: Total reward of each sample, without the terms of constraints, shape (N,).
        count: Samples that were to be scored, the first ones.
        weighted: Whether tokens have importance weights.
        reduce: Sums a tensor over processes.

    Returns:
        Means over the valid samples or the tokens of all processes; NaN for a function that scored none. `kl` is in
        nats per completion: the exact KL at every state that a completion visits, summed over the completion.
    """
    mask, valid = rollout.completion_mask, rollout.valid

    def mean_and_std(values: Tensor, where: Tensor, empty: float = 0.0) -> tuple[float, float]:
        mean, variance, known = global_moments(values, where, reduce)
        return (float(mean), float(variance.sqrt())) if known else (empty, empty)

    metrics = {}
    metrics["reward"], metrics["reward_std"] = mean_and_std(rewards, valid)
    for name, values in zip(reward_names, scores.per_function.T.to(rollout.scores.device), strict=True):
        mean, std = mean_and_std(values, ~values.isnan(), empty=math.nan)  # not defined this time, and no zero
        metrics |= {f"rewards/{name}/mean": mean, f"rewards/{name}/std": std}
    metrics["kl"] = mean_and_std(masked_sum(rollout.kl, mask, dim=1), valid)[0]
    metrics["rollout_entropy"] = mean_and_std(entropy, mask)[0]
    metrics["explained_variance"] = float(explained_variance(rollout.old_values, rollout.returns, mask, reduce))
    metrics |= disagreement(rollout, reduce)
    metrics["advantages/mean"], metrics["advantages/std"] = mean_and_std(rollout.advantages, mask)
    metrics["completions/mean_length"] = mean_and_std(mask.sum(1).float(), valid)[0]
    metrics["completions/terminated_fraction"] = mean_and_std(rollout.terminated.float(), valid)[0]
    if weighted:
        metrics["importance_weight"] = mean_and_std(rollout.weights, mask)[0]
    metrics["rewards/skipped_fraction"] = mean_and_std(
        (~valid).float(), torch.arange(len(valid), device=valid.device) < count
    )[0]
    return metrics


def scored_by(per_function: Tensor, reward_names: list[str], reduce: Reduce) -> dict[str, float]:
    """Return on how many samples, of all processes, the mean and the deviation of each function's rewards rest.

    Args:
        per_function: Rewards of the samples of this process by function, NaN without one, (N, F).
        reward_names: Names of the functions.
        reduce: Sums a tensor over processes.
    """
    counts = reduce((~per_function.isnan()).sum(0).float()).tolist()
    known = zip(reward_names, counts, strict=True)
    return {f"rewards/{name}/{what}": count for name, count in known for what in ("mean", "std")}


def add_logged(metrics: dict[str, float], scores: Scores, warned: set[str]) -> dict[str, float]:
    """Return the metrics with those that reward functions logged, averaged over all processes; a collective.

    A name of the trainer's own metrics keeps the trainer's value, which the KL controller and
    `metric_for_best_model` read.

    Args:
        metrics: The trainer's, the same on every process.
        scores: With the metrics that reward functions logged about the samples of this process.
        warned: Names that a warning has been given for; new ones are added.
    """
    logged = over_processes({name: (value, scores.weights.get(name, 1.0)) for name, value in scores.metrics.items()})
    own = {name for name in logged if name in metrics or name in _LOGGED_ELSEWHERE}
    own |= {name for name in logged if name.startswith(_LOGGED_ELSEWHERE_UNDER)}
    for name in sorted(own - warned):
        warned.add(name)
        warnings.warn(
            f"A reward function logs '{name}' by `log_metric`, which is a metric of the trainer's own; the trainer's "
            "is logged, so give yours another name.",
            stacklevel=3,
        )
    return {name: value for name, value in logged.items() if name not in own} | metrics


def warn_of_equal_rewards(metrics: dict[str, float], scores: Scores, warned: set[str]) -> None:
    """Warn once of a rollout from which nothing can be learned; a bound or rewards of tokens may still teach it.

    Args:
        metrics: Those of `describe`.
        scores: Of the samples of this process.
        warned: What a warning has been given for; this one is added.
    """
    only_total = scores.learned is None and scores.tokens is None
    if _EQUAL in warned or not only_total or int(scores.valid.sum()) < 2 or not has_equal_rewards(metrics):
        return
    warned.add(_EQUAL)
    warnings.warn(
        f"All completions of a rollout have the same reward, {metrics['reward']:g}, so the policy cannot learn from "
        "it; check the reward function, or give a reward that tells completions apart.",
        stacklevel=4,
    )


def named_rewards(scores: Scores, reward_names: list[str]) -> dict[str, list[float | None]]:
    """Return each function's rewards by its name; None where the function gave none."""
    columns = scores.per_function.T.tolist()
    return {
        name: [None if math.isnan(value) else value for value in column]
        for name, column in zip(reward_names, columns, strict=True)
    }
