# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The models, rewards and settings of a chat by name: all checked before anything is loaded."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from trl_ext.messages.printable import first_line
from trl_ext.running.finished import Sampling, run_sampling
from trl_ext.running.named_rewards import check_rewards, load_rewards
from trl_ext.running.pairs import Pair, find_pair, load_pair
from trl_ext.running.reward_state import restore_rewards
from trl_ext.text.rows import render

from .speaker import Speaker
from .talk import Talk

__all__ = ["Plan", "load", "plan"]


class Plan(NamedTuple):
    """What is to be loaded for a chat.

    Attributes:
        pair: The model and its baseline.
        sampling: How both sample.
        conversational: Whether they answer messages, and do not continue texts.
        system: System message.
        rewards: Names of the rewards.
        weights: Their weights; None for 1 each.
    """

    pair: Pair
    sampling: Sampling
    conversational: bool
    system: str | None
    rewards: Sequence[str]
    weights: Sequence[float] | None


def plan(
    name: str,
    *,
    sampling: dict[str, Any] | None = None,
    rewards: Sequence[str] = (),
    reward_weights: Sequence[float] | None = None,
    system: str | None = None,
    plain: bool = False,
    **models: Any,
) -> Plan:
    """Check everything that a chat needs, before a model is loaded.

    Args:
        name: Output folder or checkpoint of a run, a LoRA adapter, or any causal language model.
        sampling: Fields of `Sampling` that replace those of the run; None leaves one as it was.
        rewards: Names of rewards, as `reward_by_name` reads them.
        reward_weights: One for each; None for 1 each.
        system: System message of every conversation.
        plain: Whether texts are continued although there is a chat template.
        models: Further options of `find_pair`.

    Raises:
        ValueError, ImportError: in one sentence, for anything that cannot be used.
    """
    settings = run_sampling(name).changed(**(sampling or {}))
    pair = find_pair(name, **models)
    conversational = pair.tokenizer.chat_template is not None and not plain
    _check_template(pair.tokenizer, name, system, conversational, settings)
    check_rewards(rewards, reward_weights)
    return Plan(pair, settings, conversational, system, rewards, reward_weights)


def _check_template(
    tokenizer: PreTrainedTokenizerBase, name: str, system: str | None, conversational: bool, sampling: Sampling
) -> None:
    """Refuse a system message without a chat template, or one that the template refuses."""
    if not conversational:
        if system is not None:
            has_template = tokenizer.chat_template is not None
            reason = "`--plain` continues texts" if has_template else f"'{name}' has no chat template"
            raise ValueError(f"`--system` is a message of a conversation, and {reason}; leave it out.")
        return
    messages = [] if system is None else [{"role": "system", "content": system}]
    try:
        render([*messages, {"role": "user", "content": "a"}], tokenizer, sampling.chat_template_kwargs)
    except Exception as error:  # a template may raise anything
        remedy = "leave out `--system`" if messages else "use `--plain`"
        reason = first_line(error)
        raise ValueError(f"The chat template of '{name}' refuses the conversation ({reason}); {remedy}.") from None


def load(plan: Plan, *, seed: int = 0) -> Talk:
    """Load the models and rewards of a plan.

    Args:
        plan: As checked.
        seed: Seed of the first answer.

    Raises:
        ValueError, TypeError, OSError: when weights cannot be read.
    """
    speakers = [
        Speaker(
            member.title,
            member.model,
            member.tokenizer,
            plan.sampling,
            conversational=plan.conversational,
            system=plan.system,
            switched=member.switched,
        )
        for member in load_pair(plan.pair)
    ]
    rewards = load_rewards(
        plan.rewards,
        plan.weights,
        chat_template_kwargs=plan.sampling.chat_template_kwargs,
        device=plan.pair.loading["device"],
    )
    restore_rewards(rewards, plan.pair.name, plan.pair.baseline)
    return Talk(speakers, rewards, seed=seed)
