# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Completions of a policy at one time, with the reward of each function."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from trl_ext.experience.prompts import split_columns
from trl_ext.rewards import RewardRunner, Scores
from trl_ext.text.decoding import as_completions
from trl_ext.text.prompt_column import PROMPT

from .sampling import Policy, Samples


class Scored(NamedTuple):
    """A policy at one time, on N prompts.

    Attributes:
        samples: One completion for each prompt.
        kl: KL to the reference, in nats per completion.
        rewards: Unweighted rewards by function, N numbers each; None where a function does not apply.
        totals: Their weighted sums, as in training, N numbers; None where no function applies.
        judged: Marks of the judges by name, as `rewards`.
    """

    samples: Samples
    kl: float
    rewards: dict[str, list[float | None]]
    totals: list[float | None]
    judged: Mapping[str, list[float | None]] = {}


def score_policy(
    policy: Policy,
    rewards: RewardRunner,
    columns: Mapping[str, list[Any]],
    judges: RewardRunner | None = None,
    *,
    seed: int,
    missing_eos_penalty: float | None = None,
    prompt_column: str = PROMPT,
    on_progress: Callable[..., Any] | None = None,
) -> Scored:
    """Sample one completion for each prompt from a policy as it is now, and score it with the training reward.

    Args:
        policy: The policy, for instance `policy_of(trainer)`.
        rewards: The training reward, for instance `trainer.rewards`; its state stays as it is.
        columns: N prompts, and the other columns that the reward functions read, such as `trainer.eval_dataset[:]`.
        judges: Judges that training never sees, for instance `trainer.judging.judges`.
        seed: The same seed gives the same completions.
        missing_eos_penalty: As in training.
        prompt_column: As in training.
        on_progress: Called as `on_progress(completions, tokens)`, see [`GenerationEngine`].
    """
    prompts, others = split_columns(columns, prompt_column)
    samples = policy.sample(prompts, seed, on_progress)
    texts = (prompts, as_completions(prompts, samples.completions), samples.completion_ids, others)
    judged = {} if judges is None else _by_function(judges.names, judges(*texts, update_state=False))
    found = Scored(samples, policy.likelihoods(samples).kl, {}, [], judged)
    return score_again(found, rewards, columns, missing_eos_penalty=missing_eos_penalty, prompt_column=prompt_column)


def score_again(
    found: Scored,
    rewards: RewardRunner,
    columns: Mapping[str, list[Any]],
    *,
    missing_eos_penalty: float | None = None,
    prompt_column: str = PROMPT,
) -> Scored:
    """Return a measurement with the rewards that its completions get now, when running statistics may have moved.

    Args:
        found: The measurement.
        rewards, columns, missing_eos_penalty, prompt_column: As in `score_policy`.
    """
    samples, (prompts, others) = found.samples, split_columns(columns, prompt_column)
    completions = as_completions(prompts, samples.completions)
    scores = rewards(prompts, completions, samples.completion_ids, others, update_state=False)
    totals = scores.total.double().cpu()
    if missing_eos_penalty is not None:
        totals = totals - missing_eos_penalty * (~torch.tensor(samples.terminated)).double()
    known = [value if valid else None for value, valid in zip(totals.tolist(), scores.valid.tolist(), strict=True)]
    return found._replace(rewards=_by_function(rewards.names, scores), totals=known)


def _by_function(names: list[str], scores: Scores) -> dict[str, list[float | None]]:
    rows = zip(names, scores.per_function.double().cpu().T.tolist(), strict=True)
    return {name: [None if math.isnan(value) else value for value in values] for name, values in rows}
