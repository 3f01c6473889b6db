# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A critic to start from: what an earlier run left in `critic/`, or a LoRA reward adapter."""

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from trl_ext.critic_modes import CRITIC_FOLDER, CRITIC_MODES, CRITIC_RECORD, saved_critic_folder
from trl_ext.messages.printable import first_line
from trl_ext.sharding import load_state, part_of

from .adapters import ADAPTER_WEIGHTS, CRITIC_ADAPTERS, head_names, save_adapter
from .names import ADAPTER_CONFIG
from .reward_adapter import HEAD_KEYS, fill_adapter, read_reward_adapter
from .trunk import causal_lm
from .value_head import ValueHead

VALUE_HEAD = "value_head.safetensors"
# Weights of a value head that reads the reward so far.
_REWARD_KEYS = {"reward_weight", "reward_bias"}
_KINDS = ("head", "adapter", "model")
# The sizes of the model whose hidden states the critic reads: its record and a policy's configuration have both.
_SIZES = ("model_type", "num_hidden_layers")


class SavedCritic(NamedTuple):
    """A critic in a folder.

    Attributes:
        folder: Folder with the value head, and the critic's adapter or model.
        kind: "head", "adapter" or "model", as `ActorCritic.critic_kind`.
        base: Name and sizes of the policy's base; empty where an earlier version saved the critic.
        subject: Beginning of a message: the option and the name, as the user gave them.
        critics: Number of critics with an adapter each; 1 for the other kinds.
        is_reward: Whether it is a reward model's adapter, as TRL's `RewardTrainer` saves one.
    """

    folder: Path
    kind: str
    base: dict[str, Any]
    subject: str
    critics: int = 1
    is_reward: bool = False


def save_critic(
    folder: Path,
    policy: nn.Module,
    adapters: Sequence[str],
    critic: PreTrainedModel | None,
    value_head: ValueHead,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a critic, and the record by which `find_saved_critic` knows it.

    Args:
        folder: Folder of the critic.
        policy: The policy.
        adapters: Names of its adapters that are critics.
        critic: A separate critic's trunk.
        value_head: The value head.
        state: Whole state dict of the actor-critic, where this process has but a part of the weights.
    """
    for place, name in adapter_folders(folder, adapters).items():
        save_adapter(policy, place, name, part_of(state, "policy", policy))  # type: ignore[arg-type]
    if critic is not None:
        critic.save_pretrained(folder, state_dict=part_of(state, "critic", critic))
    save_file(part_of(state, "value_head", value_head) or value_head.state_dict(), folder / VALUE_HEAD)
    config = causal_lm(policy).config
    text, kind = config.get_text_config(), "adapter" if adapters else "head" if critic is None else "model"
    base = {"name": config.name_or_path} | {name: getattr(text, name, None) for name in _SIZES}
    record = {"critic": kind, "critics": value_head.out_features, "base": base}
    (folder / CRITIC_RECORD).write_text(json.dumps(record))


def adapter_folders(folder: Path, adapters: Sequence[str]) -> dict[Path, str]:
    """Return the critic's adapters by the folders that hold them: the first is in `folder`, the next in subfolders."""
    return {folder / name if i else folder: name for i, name in enumerate(adapters)}


def read_record(folder: Path, subject: str) -> tuple[str, int, dict[str, Any]]:
    """Return the kind of a saved critic, the number of critics, and the name and sizes of their base.

    Raises:
        ValueError: when the record cannot be read.
    """
    try:
        record = json.loads((folder / CRITIC_RECORD).read_text(encoding="utf-8"))
        kind, critics, base = record["critic"], record.get("critics", 1), record.get("base") or {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{subject} has a `{CRITIC_RECORD}` that cannot be read ({first_line(error)}); save the critic again."
        ) from None
    if kind not in _KINDS:
        raise ValueError(f"{subject} has a critic of the unknown kind {kind!r}; update trl_ext to load it.")
    return kind, critics, base


def find_saved_critic(name: str, *, option: str = "`critic`") -> SavedCritic | None:
    """Find the critic that an earlier run saved under `name`, or a LoRA reward adapter; None for anything else.

    Args:
        name: The folder `critic` of a run, the folder of the run's policy, which has it as its subfolder, or the folder
            of a reward adapter.
        option: Option that gives `name`, for messages.

    Raises:
        FileNotFoundError: when a file of the critic is missing.
        ValueError: when the record of the critic cannot be read.
    """
    if name in CRITIC_MODES:
        return None
    subject, folder = f"{option} {name!r}", saved_critic_folder(name)
    if folder is None:
        return _find_reward_adapter(Path(name).expanduser(), subject)
    kind, critics, base = read_record(folder, subject)
    places = adapter_folders(Path(), CRITIC_ADAPTERS[:critics])
    adapters = [str(place / file) for place in places for file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG)]
    for file in (VALUE_HEAD, *{"head": [], "adapter": adapters, "model": ["config.json"]}[kind]):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{subject} lacks the file `{file}` of its critic; save the critic again.")
    return SavedCritic(folder, kind, base, subject, critics)


def _find_reward_adapter(folder: Path, subject: str) -> SavedCritic | None:
    """Return the reward adapter in `folder`; None where there is none."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    config = _read_adapter(folder, subject)
    if getattr(config.task_type, "value", config.task_type) != "SEQ_CLS":
        return None
    base: dict[str, Any] = {"name": config.base_model_name_or_path}
    try:
        text = AutoConfig.from_pretrained(str(base["name"]), local_files_only=True).get_text_config()
        base |= {size: getattr(text, size, None) for size in _SIZES}
    except (OSError, ValueError):
        pass  # no longer there: only the names can be compared
    return SavedCritic(folder, "adapter", base, subject, is_reward=True)


def _read_adapter(folder: Path, subject: str) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # peft raises many kinds
        raise ValueError(f"{subject} has an adapter that cannot be read ({first_line(error)}).") from None


def check_saved_critic(
    saved: SavedCritic, policy: PretrainedConfig | None, *, with_adapters: bool, lora: str = "`peft_config`"
) -> None:
    """Check that a saved critic fits the policy, before either is loaded.

    Args:
        saved: The critic.
        policy: Configuration of the policy.
        with_adapters: Whether the policy is, or will be, an adapter on a frozen base.
        lora: Option that gives the policy its adapter, for messages.

    Raises:
        ValueError: when the critic is an adapter and the policy has none, or belongs to a base of other sizes.
    """
    if saved.kind == "adapter" and not with_adapters:
        raise ValueError(f"{saved.subject} is a LoRA adapter beside the policy's own: it needs {lora}.")
    if saved.kind == "model" or policy is None:
        return
    text, width = policy.get_text_config(), _head_width(saved)
    # OPT-350m projects its hidden states to another width.
    ours = getattr(text, "word_embed_proj_dim", None) or getattr(text, "hidden_size", width)
    sizes: dict[str, tuple[Any, Any]] = {"the width of hidden states": (width, ours)}
    sizes |= {f"`{name}`": (saved.base.get(name), getattr(text, name, None)) for name in _SIZES if name in saved.base}
    for size, (theirs, ours) in sizes.items():
        if theirs != ours:
            raise ValueError(
                f"{saved.subject} belongs to another base: {size} is {theirs} there and {ours} in the policy; give the "
                "critic of a run on the policy's own base."
            )


def check_reading(critic: str, every: int | None, *, option: str = "`critic`") -> None:
    """Check that a run gives the critic of an earlier run the rewards that it reads.

    Args:
        critic: As in `PPOConfig`.
        every: `critic_reads_reward_every` of the run.
        option: Option that gives `critic`, for the message.

    Raises:
        ValueError: when the critic reads rewards and the run has none for it.
    """
    saved = find_saved_critic(critic, option=option) if every is None else None
    if saved is not None and not saved.is_reward and reads_rewards(saved.folder):
        raise ValueError(
            f"{saved.subject} reads the reward of what is written so far; set `critic_reads_reward_every`, as the run "
            "that trained it did."
        )


def reads_rewards(folder: Path) -> bool:
    """Return whether the value head of a saved critic reads rewards; False where it cannot be read."""
    try:
        with safe_open(folder / VALUE_HEAD, framework="pt") as file:
            return set(file.keys()) >= _REWARD_KEYS
    except (SafetensorError, OSError):
        return False


def _head_width(saved: SavedCritic) -> int:
    """Return the width of the hidden states that the critic's head reads."""
    file = ADAPTER_WEIGHTS if saved.is_reward else VALUE_HEAD
    try:
        with safe_open(saved.folder / file, framework="pt") as weights:
            keys = HEAD_KEYS if saved.is_reward else ("weight",)
            key = next(key for key in keys if key in weights.keys())  # noqa: SIM118  no mapping
            return weights.get_slice(key).get_shape()[1]
    except StopIteration:
        raise ValueError(
            f"{saved.subject} is a reward adapter without a trained head; train it with `modules_to_save=['score']`."
        ) from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{saved.subject} has a `{file}` that cannot be read ({first_line(error)}); save it again."
        ) from None


def read_critic_adapter(saved: SavedCritic) -> LoraConfig:
    """Read the configuration of the adapter that a critic starts from.

    Raises:
        ValueError: when it is no LoRA, or cannot be read.
    """
    config = _read_adapter(saved.folder, saved.subject)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{saved.subject} is a {type(config).__name__}; a critic's adapter is a LoRA.")
    return dataclasses.replace(config, task_type="CAUSAL_LM", modules_to_save=None)


def load_critic_weights(saved: SavedCritic, policy: nn.Module, adapters: Sequence[str], value_head: ValueHead) -> None:
    """Load the weights of a saved critic besides those of a separate model.

    Args:
        saved: The critic.
        policy: The policy.
        adapters: Names of its adapters that are critics.
        value_head: The value head.

    Raises:
        ValueError: when the weights belong to another base, or cannot be read.
    """
    name = causal_lm(policy).config.name_or_path
    run = saved.folder.parent.resolve().name if saved.folder.name == CRITIC_FOLDER else None
    # A head was trained with the run's policy, and an adapter on the base of both.
    if saved.kind == "adapter" or saved.kind == "head" and Path(name).name != run:
        _warn_of_another_base(saved, name)
    for place, adapter in adapter_folders(saved.folder, adapters).items():
        _load_adapter(saved, place, policy, adapter)
    if saved.is_reward:
        _, _, head = read_reward_adapter(saved.folder)
        value_head.load_state_dict(head.state_dict())
    else:
        load_value_head(value_head, saved.folder, saved.subject)


def _load_adapter(saved: SavedCritic, folder: Path, policy: nn.Module, adapter: str) -> None:
    try:
        weights = read_reward_adapter(folder)[1] if saved.is_reward else load_file(folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise ValueError(
            f"{saved.subject} has a `{ADAPTER_WEIGHTS}` that cannot be read ({first_line(error)}); save it again."
        ) from None
    heads = tuple(f"base_model.model.{name}." for name in head_names(causal_lm(policy)))
    weights = {key: value for key, value in weights.items() if not key.startswith(heads)}  # of an earlier version
    problem = fill_adapter(policy, weights, adapter)
    if problem is not None:
        raise ValueError(
            f"{saved.subject} belongs to another base and does not fit the policy's ({problem}); give the critic of a "
            "run on the policy's own base."
        )


def load_value_head(value_head: ValueHead, folder: Path, subject: str) -> None:
    """Load a saved value head; where it reads rewards, `value_head` reads them too afterwards.

    Raises:
        ValueError: when it belongs to hidden states of another width, or cannot be read.
    """
    try:
        if reads_rewards(folder):
            value_head.read_rewards()
        load_state(value_head, lambda: _head_weights(folder, value_head))
    except (RuntimeError, SafetensorError) as error:
        problem = str(error).splitlines()[-1].strip()
        raise ValueError(f"{subject} has a value head that does not fit ({problem}); save the critic again.") from None


def _head_weights(folder: Path, value_head: ValueHead) -> dict[str, Tensor]:
    """Return the weights of a saved value head; zeros for those that a head lacks which did not read rewards."""
    weights = load_file(folder / VALUE_HEAD)
    if value_head.reads_rewards:
        weights.setdefault("reward_weight", torch.zeros_like(weights["weight"]))
        weights.setdefault("reward_bias", torch.zeros_like(weights["bias"]))
    return weights


def _warn_of_another_base(saved: SavedCritic, policy: str) -> None:
    base = saved.base.get("name")
    if base and policy and Path(base).name != Path(policy).name:
        warnings.warn(
            f"{saved.subject} was trained on {base!r} and the policy is {policy!r}; unless these are the same weights, "
            "its values are wrong at first, and a critic of the policy's own base starts better.",
            stacklevel=6,
        )
