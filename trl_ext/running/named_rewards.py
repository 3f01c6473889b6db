# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The rewards of a command line: `--reward SPEC`, repeated, and `--reward_weights`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_ext.experience.prompts import split_columns
from trl_ext.rewards import RewardRunner, try_reward
from trl_ext.rewards.base import JUDGE, REWARD
from trl_ext.rewards.by_name import check_reward_name, reward_by_name, same_reward

from .names import named_by
from .records import training_rewards

__all__ = ["check_rewards", "load_rewards", "tried_rewards", "warn_of_training_reward"]


def check_rewards(specs: Sequence[str], weights: Sequence[float] | None) -> None:
    """Refuse rewards that are not found, and weights that are not one for each, before a model is loaded.

    Raises:
        ValueError: in one sentence.
    """
    if weights is not None and len(weights) != len(specs):
        raise ValueError(
            f"`--reward_weights` has {len(weights)} numbers for {len(specs)} rewards; give one for each `--reward`."
        )
    for spec in specs:
        check_reward_name(spec)


def load_rewards(
    specs: Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> RewardRunner | None:
    """Load rewards by name; a sample that one fails on has no reward, and does not end the command.

    Returns:
        Their runner, or None where there is no reward.

    Raises:
        ValueError: as `reward_by_name` and `RewardRunner` raise.
    """
    if not specs:
        return None
    return RewardRunner(
        [reward_by_name(spec) for spec in specs],
        weights=weights,
        max_reward_failures=1.0,
        chat_template_kwargs=dict(chat_template_kwargs or {}),
        device=device,
    )


def tried_rewards(
    specs: Sequence[str] | None, rows: Dataset, prompt_column: str, option: str = "--reward"
) -> list[Callable[..., Any]]:
    """Return the functions of names, each tried on made-up completions of the first two rows.

    Raises:
        ValueError, TypeError: as `reward_by_name` and `try_reward` raise, in words of `option`.
    """
    kind = JUDGE if option == "--eval_reward" else REWARD
    with named_by(option):
        functions = [reward_by_name(spec) for spec in specs or ()]
        for function in functions:
            try_reward(function, *split_columns(rows[:2], prompt_column), kind)
    return functions


def warn_of_training_reward(option: str, judge: str, folder: Path) -> None:
    """Warn of a judge that is a reward which the run in a folder was trained on.

    Args:
        option: Option that names the judge, without dashes.
        judge: Name of the judge, as `--reward` takes it.
        folder: Output directory of the run; any other folder has no record.
    """
    if same_reward(judge) in map(same_reward, training_rewards(folder)):
        warnings.warn(
            f"`--{option}` is the reward that '{folder}' was trained on, which PPO has learned to please; judge with "
            "another one.",
            stacklevel=2,
        )
