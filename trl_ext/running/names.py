# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks of the names of models, before anything is trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from trl import ModelConfig

from trl_ext.actor_critic.saved_critic import check_reading, check_saved_critic, find_saved_critic
from trl_ext.config import PPOConfig
from trl_ext.critic_modes import CRITIC_MODES
from trl_ext.messages.printable import one_line
from trl_ext.rewards import ToxicityReward, check_reward_name
from trl_ext.rewards.by_name import same_reward
from trl_ext.rewards.classifiers import check_scores

from .data import looks_like_path

__all__ = [
    "check_classifier",
    "check_critic",
    "check_distinct",
    "check_judge",
    "check_model",
    "check_policy",
    "check_required",
    "check_reward_model",
    "check_rewards",
    "is_adapter",
    "named_by",
]


def check_required(given: Mapping[str, Any]) -> None:
    """Refuse a command line with a model of the user's own and without the names that belong to it.

    Args:
        given: Values of the required options, by name.

    Raises:
        ValueError: if one is missing.
    """
    missing = [f"`--{name}`" for name, value in given.items() if not value]
    if missing:
        raise ValueError(f"With `--model_name_or_path` you must also give {' and '.join(missing)}; see `--help`.")


def check_policy(model_args: ModelConfig, args: PPOConfig) -> None:
    """Refuse a policy or a critic that is no model, and an output directory that is the policy's folder.

    Raises:
        ValueError: if so.
    """
    name = str(model_args.model_name_or_path)
    trusted: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
    check_distinct({"model_name_or_path": name}, Path(str(args.output_dir)).expanduser().resolve())
    config = check_model("model_name_or_path", name, revision=model_args.model_revision, **trusted)
    has_lora = model_args.use_peft or is_adapter(name)
    check_critic(args, config, has_lora=has_lora, **trusted)


def check_rewards(names: Sequence[str], args: PPOConfig, judges: Sequence[str] = ()) -> None:
    """Refuse rewards and judges that lead nowhere, one that is given twice or as both, and weights that do not fit.

    Args:
        names: Values of `--reward`.
        args: Has the weights, and the reward adapters, which follow the rewards.
        judges: Values of `--eval_reward`.

    Raises:
        ValueError: if so.
    """
    known = [same_reward(name) for name in names]
    twice = next((name for i, name in enumerate(names) if known[i] in known[:i]), None)
    if twice is not None:
        raise ValueError(f"`--reward {one_line(twice)}` is given twice; give it once, with a `--reward_weights`.")
    count = len(names) + len(args.reward_adapters or [])
    if args.reward_weights is not None and len(args.reward_weights) != count:
        raise ValueError(
            f"`--reward_weights` has {len(args.reward_weights)} values and there are {count} rewards; give one weight "
            "for each `--reward`, in their order."
        )
    for name in names:
        check_reward_name(name)
    others = [same_reward(name) for name in judges]
    for i, name in enumerate(judges):
        if others[i] in others[:i]:
            raise ValueError(f"`--eval_reward {one_line(name)}` is given twice; give it once.")
        if others[i] in known:
            raise ValueError(
                f"`--eval_reward {one_line(name)}` is also a `--reward`, and a reward judges nothing; give another."
            )
    with named_by("--eval_reward"):
        for name in judges:
            check_reward_name(name)


@contextmanager
def named_by(option: str) -> Iterator[None]:
    """Let what goes wrong with a reward's name in a block be said of another option than `--reward`."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("--reward", option)) from error


def check_model(option: str, name: str, *, advice: str = "", **options: Any) -> Any:
    """Load the configuration of a model, without its weights.

    Args:
        option: Option that names the model, without dashes.
        name: A folder or an id of the Hub.
        advice: Other values of the option, for the message.
        options: Arguments of `from_pretrained`: `revision`, `trust_remote_code`.

    Returns:
        The configuration; of a LoRA adapter, that of its base.

    Raises:
        ValueError: if there is no such model.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and looks_like_path(name):
        raise ValueError(f"`--{option} {name}` does not exist; give a model's folder or its id on the Hub{advice}.")
    if folder.is_dir() and (folder / "adapter_config.json").is_file():
        base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        return check_model(option, str(base), advice=" (it is the base of an adapter)", **options)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"`--{option} {name}` is a folder without a model: it has no config.json.")
    try:
        return AutoConfig.from_pretrained(str(folder) if folder.is_dir() else name, **options)
    except (OSError, ValueError, KeyError) as error:
        where = "a folder whose config.json is no model's" if folder.is_dir() else "no folder here, and not on the Hub"
        if not folder.is_dir() and _is_offline(error):
            where = "no folder here, and not among the downloaded models of the Hub, which cannot be reached"
        raise ValueError(
            f"`--{option} {name}` is {where}; give a model's folder or its id on the Hub{advice}."
        ) from error


def _is_offline(error: BaseException) -> bool:
    words = ("connect", "offline", "cached files", "local cache")
    return any(word in str(error).lower() for word in words)


def is_adapter(name: str) -> bool:
    """Return whether a folder holds an adapter."""
    return (Path(name).expanduser() / "adapter_config.json").is_file()


def check_critic(args: PPOConfig, policy: PretrainedConfig, *, has_lora: bool, **options: Any) -> None:
    """Refuse a critic that is no mode, no model, no run's critic, or does not go with the policy or the settings.

    Args:
        args: Settings with the critic.
        policy: Configuration of the policy.
        has_lora: Whether the policy is trained with LoRA.
        options: As in `check_model`.

    Raises:
        FileNotFoundError, ValueError: if so.
    """
    critic = args.critic
    if critic == "adapter" and not has_lora:
        raise ValueError("`--critic adapter` is a LoRA adapter beside the policy's own; add `--use_peft`.")
    saved = find_saved_critic(critic, option="`--critic`")
    if saved is not None:
        check_saved_critic(saved, policy, with_adapters=has_lora, lora="`--use_peft`")
        check_reading(critic, args.critic_reads_reward_every, option="`--critic`")
    elif critic not in CRITIC_MODES:
        check_model("critic", critic, advice=f", or one of {', '.join(CRITIC_MODES)}", **options)


def check_reward_model(option: str, name: str, **options: Any) -> None:
    """Refuse a name that is not that of a reward model with a tokenizer.

    Raises:
        ValueError: if not.
    """
    config = check_model(option, name, **options)
    if is_adapter(name):
        return
    check_scores(config, f"`--{option} {name}`")
    if config.num_labels != 1:
        raise ValueError(
            f"`--{option} {name}` has {config.num_labels} labels, and a reward model has one; give one that was "
            "trained on preferences."
        )
    _check_tokenizer(option, name, **options)


def check_classifier(option: str, name: str, label: tuple[str, str | None], **options: Any) -> None:
    """Refuse a name that is not that of a classifier with a toxic label and a tokenizer.

    Args:
        label: The option that names the label, and its value.

    Raises:
        ValueError: if not.
    """
    config = check_model(option, name, **options)
    if not is_adapter(name):
        check_scores(config, f"`--{option} {name}`")
    try:
        ToxicityReward(name, toxic_label=label[1]).toxic_indices(config)
    except ValueError as error:
        labels = ", ".join(str(config.id2label[i]) for i in range(config.num_labels))
        given = "" if label[1] is None else f" {label[1]}"
        raise ValueError(
            f"`--{label[0]}{given}` must be one of the labels of `--{option} {name}`, which are {labels}."
        ) from error
    _check_tokenizer(option, name, **options)


def _check_tokenizer(option: str, name: str, **options: Any) -> None:
    try:
        AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"`--{option} {name}` has no tokenizer that can be loaded; save one beside it.") from error


def check_judge(judge: str | None, reward: str | None) -> None:
    """Refuse a judge that is also the reward.

    Raises:
        ValueError: if both names stand for one model.
    """
    if judge is None or reward is None:
        return
    if same_reward(judge) == same_reward(reward):
        raise ValueError(
            f"`--judge_model {judge}` is also the reward, which PPO has learned to please; judge with another model."
        )


def check_distinct(policy: Mapping[str, str], output_dir: Path) -> None:
    """Refuse an output directory that is a model's folder, which would be overwritten.

    Raises:
        ValueError: if it is.
    """
    for option, name in policy.items():
        if Path(name).expanduser().is_dir() and Path(name).expanduser().resolve() == output_dir:
            raise ValueError(f"`--output_dir` is also `--{option} {name}`, which would be overwritten; choose another.")
