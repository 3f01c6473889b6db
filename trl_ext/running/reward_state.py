# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The state that reward functions had at the end of a run, such as the moments by which rewards are normalized."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trl_ext.actor_critic.averaging import AVERAGE_FOLDER
from trl_ext.checkpoint import STATE, checkpoints
from trl_ext.folders import is_complete
from trl_ext.resuming import read_state
from trl_ext.rewards import PreferenceReward, RewardRunner
from trl_ext.rewards.base import is_stateful, iter_parts, keeps_statistics
from trl_ext.rewards.combine import Combination

__all__ = ["restore_rewards"]


def restore_rewards(rewards: RewardRunner | None, *folders: str | Path | None) -> None:
    """Put the state of a run into its reward functions, which must not begin anew to measure a finished policy.

    A normalized reward without the moments of the run is centred on each batch, so that the mean of every model is 0.

    Args:
        rewards: Functions, of which those with the name of one of the run's get its state, classes of the user's own
            included; None for no functions.
        folders: Folders of policies; the first with a checkpoint, in it or beside it, gives the state.
    """
    if rewards is None:
        return
    states = rewards.state_dict()
    functions = dict(zip(rewards.names, rewards.reward_funcs, strict=True))
    moving = [name for name in states if _has_moving_state(functions[name])]
    if not moving:
        return
    saved = next(_saved(folders), {})
    found = {name: saved[name] for name in moving if name in saved}
    try:
        rewards.load_state_dict(states | found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):  # of another function with the same name
        rewards.load_state_dict(states)
        found = {}
    if lacking := [name for name in moving if name not in found and keeps_statistics(functions[name])]:
        warnings.warn(
            f"The reward '{lacking[0]}' keeps statistics of its run, and no checkpoint of '{folders[0]}' holds them: "
            "it counts from each batch of samples alone, which hides the difference of two models; measure with the "
            "reward inside it.",
            stacklevel=2,
        )


def _has_moving_state(function: Any) -> bool:
    """Return whether training moves the state of a function, or of one inside it.

    A combination without statistics has the state of its parts alone. The calibration of a reward model belongs to that
    model, and another one may have its name.
    """
    parts = [part for part in iter_parts(function) if not isinstance(part, Combination | PreferenceReward)]
    return keeps_statistics(function) or any(map(is_stateful, parts))


def _saved(folders: tuple[str | Path | None, ...]) -> Iterator[Mapping[str, Any]]:
    """Yield the states of reward functions in the newest whole checkpoint in or beside each folder."""
    for folder in (Path(name).expanduser() for name in folders if name is not None):
        if folder.name == AVERAGE_FOLDER:  # in the folder of the policy that it is the average of
            folder = folder.parent
        inside = [folder] if (folder / STATE).is_file() else []
        beside = [place for root in (folder.parent, folder) for place in checkpoints(root) if is_complete(place)]
        for checkpoint in (*inside, *reversed(beside)):
            try:
                state = read_state(checkpoint, 0)["rewards"]
            except (ValueError, KeyError):
                continue
            if isinstance(state, dict):
                yield state
                break
