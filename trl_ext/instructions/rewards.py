# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The reward that PPO maximizes, made of the models of the `reward` stage."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase

from trl_ext.actor_critic import ActorCritic, build_actor_critic, load_reward_ensemble
from trl_ext.config import PPOConfig
from trl_ext.rewards import PAR, Ensemble, LengthDebiased, LogSigmoid, PreferenceReward, reward_name
from trl_ext.rewards.base import SERVICES, accepted_arguments
from trl_ext.text.rows import Text
from trl_ext.worlds.instructions import InstructionJudge

from .options import PPOStage

PROXY = "proxy"  # name of the reward that PPO maximizes


def is_adapter(name: str) -> bool:
    """Return whether a reward model is a LoRA adapter that needs its base."""
    return (Path(name) / "adapter_config.json").is_file()


def load_rewards(
    names: Sequence[str],
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
    *,
    max_length: int | None,
    init_kwargs: dict[str, Any],
) -> list[PreferenceReward]:
    """Load reward models without a policy; LoRA adapters share one base.

    Args:
        names: Folders or names of reward models, all whole or all adapters.
        base: Base of the adapters.
        tokenizer: Tokenizer of the base.
        max_length: Tokens per text.
        init_kwargs: Keyword arguments of `from_pretrained` for the base.
    """
    if not is_adapter(names[0]):
        return [_whole(name, args, max_length, str(i)) for i, name in enumerate(names)]
    models = load_reward_ensemble(base, names, **init_kwargs)
    return [_on_base(model, tokenizer, args, max_length, str(i)) for i, model in enumerate(models)]


def with_reward_adapters(
    names: Sequence[str],
    policy: str,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
    *,
    peft_config: PeftConfig,
    quantization_config: BitsAndBytesConfig | None,
    max_length: int | None,
) -> tuple[ActorCritic, list[PreferenceReward]]:
    """Load a policy with LoRA, and reward models that are further adapters on its base.

    The trainer does not add their scores up: they become members of an ensemble.
    """
    init_kwargs: dict[str, Any] = args.model_init_kwargs or {}  # type: ignore[assignment]
    actor_critic = build_actor_critic(
        policy,
        args.critic,
        peft_config=peft_config,
        quantization_config=quantization_config,
        critic_lora_rank=args.critic_lora_rank,
        critic_target_modules=args.critic_target_modules,
        num_critics=args.num_critics,
        reward_adapters=names,
        sum_reward_models=False,
        init_kwargs={"trust_remote_code": args.trust_remote_code, **init_kwargs},
    )
    models = actor_critic.reward_models
    rewards = [_on_base(model, tokenizer, args, max_length, str(i)) for i, model in enumerate(models)]
    return actor_critic, rewards


def _whole(name: str, args: PPOConfig, max_length: int | None, label: str) -> PreferenceReward:
    return PreferenceReward(
        name,
        append_eos=True,
        batch_size=args.scoring_batch_size,
        max_length=max_length,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
        name=f"reward_{label}",
    )


def _on_base(
    model: Any, tokenizer: PreTrainedTokenizerBase, args: PPOConfig, max_length: int | None, label: str
) -> PreferenceReward:
    return PreferenceReward(
        model,
        tokenizer=model.tokenizer or tokenizer,
        append_eos=True,
        batch_size=args.scoring_batch_size,
        max_length=max_length,
        name=f"reward_{label}",
    )


def combine(members: Sequence[PreferenceReward], stage: PPOStage, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the reward function that PPO maximizes: ensemble, length debiasing, bound."""
    reward: Any = members[0]
    if len(members) > 1 and stage.aggregation not in ("first", "warm"):
        reward = Ensemble(members, stage.aggregation, k=stage.aggregation_k)
    if stage.length_debias:
        reward = LengthDebiased(reward)
    if stage.shaping == "log_sigmoid":
        return LogSigmoid(reward, name=PROXY)
    if stage.shaping == "par":
        return PAR(reward, tokenizer=tokenizer, name=PROXY)
    reward.__name__ = PROXY
    return reward


def calibrate(members: Sequence[PreferenceReward], prompts: Sequence[Text], completions: Sequence[Any]) -> None:
    """Give each reward mean 0 and deviation 1 on completions of the initial policy (detail 9)."""
    for member in members:
        member.calibrate(prompts, completions)


def make_gold(stage: PPOStage, args: PPOConfig, *, is_embedded: bool) -> Any | None:
    """Return the reward that watches and evaluates: the embedded judge, `judge_model`, or None without either."""
    if is_embedded:
        return AskedOnce(InstructionJudge())
    if stage.judge_model is None:
        return None
    return AskedOnce(PreferenceReward(stage.judge_model, append_eos=True, name="gold", device=args.device))


class AskedOnce:
    """A reward function that gives the batch it was given last the same marks, without being called again.

    In an evaluation the monitor asks it about a batch, and then the judging of the evaluation about the same batch.

    Args:
        function: The reward function; the same batch always gets the same marks from it.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function, self.__name__ = function, reward_name(function)
        self._batch: tuple[Any, ...] | None = None
        self._marks: list[Any] = []

    def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], completion_ids: list[list[int]], **columns: Any
    ) -> list[Any]:
        """Return N marks."""
        data = {name: values for name, values in columns.items() if name not in SERVICES}
        batch = (list(prompts), list(completions), data)
        if batch != self._batch:
            self._batch = None  # where the call fails
            given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
            marks = list(self.function(**accepted_arguments(self.function, given)))
            self._batch, self._marks = copy.deepcopy(batch), marks
        return list(self._marks)
