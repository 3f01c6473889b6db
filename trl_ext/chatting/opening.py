# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The models, rewards and settings of a chat by name: all checked before anything is loaded."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from trl_ext.actor_critic.names import PolicySource, find_policy, load_tokenizer
from trl_ext.messages.printable import first_line, one_line
from trl_ext.rewards import RewardRunner
from trl_ext.rewards.by_name import check_reward_name, reward_by_name
from trl_ext.running.finished import (
    Finished,
    Sampling,
    adapter_base,
    check_loading,
    find_base,
    load_finished,
    run_sampling,
)
from trl_ext.text.rows import render

from .speaker import Speaker
from .talk import Talk

__all__ = ["Plan", "load", "plan"]


class Plan(NamedTuple):
    """What is to be loaded for a chat.

    Attributes:
        name: Name or folder of the model.
        source: As found.
        tokenizer: Its tokenizer.
        sampling: How all models sample.
        conversational: Whether the models answer messages, and do not continue texts.
        system: System message.
        baseline: Name of the baseline, and where it was found; None for a chat without one, or for the model itself
            with its adapter off.
        adapter_off: Whether the baseline is the model with its adapter off.
        rewards: Names of the rewards.
        weights: Their weights; None for 1 each.
        notes: What the user should know before the chat begins.
    """

    name: str
    source: PolicySource
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    conversational: bool
    system: str | None
    baseline: tuple[str, PolicySource] | None
    adapter_off: bool
    rewards: tuple[str, ...]
    weights: tuple[float, ...] | None
    notes: tuple[str, ...]


def plan(
    name: str,
    *,
    base_model: str | None = None,
    baseline: str | None = None,
    no_baseline: bool = False,
    rewards: Sequence[str] = (),
    reward_weights: Sequence[float] | None = None,
    system: str | None = None,
    plain: bool = False,
    load_in_4bit: bool = False,
    device: str | None = None,
    trust_remote_code: bool = False,
    **sampling: Any,
) -> Plan:
    """Check everything that a chat needs, before a model is loaded.

    Args:
        name: Output folder or checkpoint of a run, a LoRA adapter, or any causal language model.
        base_model: Base of an adapter, where it has moved.
        baseline: Model to answer beside it; None for the one that the run began from, if it is recorded and at hand.
        no_baseline: Whether there is to be none.
        rewards: Names of rewards, as `reward_by_name` reads them.
        reward_weights: One for each; None for 1 each.
        system: System message of every conversation.
        plain: Whether texts are continued although there is a chat template.
        load_in_4bit, device, trust_remote_code: As in `load_finished`.
        sampling: Fields of `Sampling` that replace those of the run; None leaves one as it was.

    Raises:
        ValueError: in one sentence, for anything that cannot be used.
    """
    options = {"trust_remote_code": trust_remote_code}
    given_base, base_model = base_model, base_model or adapter_base(name)
    where = {"option": "DIR", "base_model": base_model, "base_option": "--base_model"}
    source = find_policy(name, options, **where)  # type: ignore[arg-type]
    notes = []
    if given_base is not None and source.adapter is None:
        notes.append(f"`--base_model` has no effect: '{name}' is a whole model, not an adapter.")
    settings = run_sampling(name).changed(**sampling)
    tokenizer = load_tokenizer(name, options, base_model=base_model)
    conversational = tokenizer.chat_template is not None and not plain
    _check_template(tokenizer, name, system, conversational, settings)
    check_loading(name, source, load_in_4bit=load_in_4bit, device=device)
    weights = _check_rewards(rewards, reward_weights)
    found, adapter_off, told = _baseline(name, source, baseline, no_baseline, options)
    return Plan(
        name,
        source,
        tokenizer,
        settings,
        conversational,
        system,
        found,
        adapter_off,
        tuple(rewards),
        weights,
        (*notes, *told),
    )


def _check_rewards(rewards: Sequence[str], weights: Sequence[float] | None) -> tuple[float, ...] | None:
    if weights is not None and len(weights) != len(rewards):
        raise ValueError(
            f"`--reward_weights` has {len(weights)} numbers for {len(rewards)} rewards; give one for each `--reward`."
        )
    for spec in rewards:
        check_reward_name(spec)
    return None if weights is None else tuple(weights)


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
        raise ValueError(
            f"The chat template of '{name}' refuses the conversation ({first_line(error)}); {remedy}."
        ) from None


def _baseline(
    name: str, source: PolicySource, given: str | None, unwanted: bool, options: dict[str, Any]
) -> tuple[tuple[str, PolicySource] | None, bool, list[str]]:
    """Return the baseline to load, whether it is the model with its adapter off, and what to say about it."""
    if unwanted:
        return None, False, []
    if source.adapter is not None and (given is None or _same(given, source.base)):
        return None, True, [f"The baseline is its base '{source.base}', the same model with the adapter off."]
    if given is not None:
        return (given, find_policy(given, options, option="--baseline")), False, []
    recorded = find_base(name)
    if recorded is None or _same(recorded, name):
        return None, False, []
    try:
        found = find_policy(recorded, options)
    except ValueError:
        return None, False, [f"Its base '{recorded}' is not at hand; `--baseline` names another model to compare with."]
    return (recorded, found), False, [f"The baseline is its base '{recorded}'."]


def _same(one: str, other: str) -> bool:
    """Return whether two names are one model."""
    paths = [Path(path).expanduser() for path in (one, other)]
    return one == other or all(path.is_dir() for path in paths) and paths[0].samefile(paths[1])


def load(plan: Plan, *, seed: int = 0, **options: Any) -> Talk:
    """Load the models and rewards of a plan.

    Args:
        plan: As checked.
        seed: Seed of the first answer.
        options: `dtype`, `load_in_4bit`, `device` and `trust_remote_code`, as in `load_finished`.

    Raises:
        ValueError, TypeError, OSError: when weights cannot be read.
    """
    model = load_finished(plan.name, plan.source, plan.tokenizer, **options)
    speakers = [_speaker(plan, _short(plan.name), model)]
    if plan.adapter_off:
        assert isinstance(model.model, PeftModel)
        title = f"baseline {_short(plan.source.base)}"
        speakers.append(_speaker(plan, title, model, switched=model.model.disable_adapter))
    elif plan.baseline is not None:
        name, source = plan.baseline
        tokenizer = load_tokenizer(name, {"trust_remote_code": options.get("trust_remote_code", False)})
        if plan.conversational and tokenizer.chat_template is None:
            tokenizer.chat_template = plan.tokenizer.chat_template
        other = load_finished(name, source, tokenizer, **options)
        speakers.append(_speaker(plan, f"baseline {_short(name)}", other))
    rewards = None
    if plan.rewards:
        functions = [reward_by_name(spec) for spec in plan.rewards]
        template_kwargs = dict(plan.sampling.chat_template_kwargs)
        rewards = RewardRunner(
            functions,
            weights=plan.weights,
            max_reward_failures=1.0,
            chat_template_kwargs=template_kwargs,
            device=options.get("device"),
        )
    return Talk(speakers, rewards, seed=seed)


def _short(name: str, limit: int = 40) -> str:
    """Return a name that fits over a column; the end of a path tells more than its beginning."""
    line = one_line(name)
    return line if len(line) <= limit else f"…{line[1 - limit :]}"


def _speaker(plan: Plan, title: str, loaded: Finished, switched: Callable[[], Any] = nullcontext) -> Speaker:
    return Speaker(
        title,
        loaded.causal_lm,
        loaded.tokenizer,
        plan.sampling,
        conversational=plan.conversational,
        system=plan.system,
        switched=switched,
    )
