# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A model and the baseline that it is seen beside: found by name, then loaded."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.actor_critic.names import PolicySource, find_policy, load_tokenizer
from trl_ext.messages.printable import one_line

from .finished import adapter_base, check_loading, find_base, load_finished

__all__ = ["Member", "Pair", "find_pair", "load_pair"]


class Pair(NamedTuple):
    """A model and its baseline, not loaded.

    Attributes:
        name: Name or folder of the model.
        source: The model as found.
        tokenizer: Its tokenizer.
        baseline: Name of the baseline; None where there is none.
        baseline_source: The baseline as found; None where it is the model itself with its adapter off.
        loading: Options of `load_finished`, for both.
        notes: What the user should know about the choice.
    """

    name: str
    source: PolicySource
    tokenizer: PreTrainedTokenizerBase
    baseline: str | None
    baseline_source: PolicySource | None
    loading: dict[str, Any]
    notes: tuple[str, ...]


class Member(NamedTuple):
    """A loaded model of a pair.

    Attributes:
        title: Its name, short enough for the head of a column.
        model: The model that generates.
        tokenizer: Its tokenizer, which can pad.
        switched: Context in which the model is this member, such as one with its adapter off.
    """

    title: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    switched: Callable[[], AbstractContextManager[Any]]


def find_pair(
    name: str,
    baseline: str | None = None,
    *,
    with_baseline: bool = True,
    base_model: str | None = None,
    dtype: str | None = None,
    load_in_4bit: bool = False,
    device: str | None = None,
    trust_remote_code: bool = False,
    options: tuple[str, str] = ("DIR", "--baseline"),
) -> Pair:
    """Find a model and its baseline, before either is loaded.

    Args:
        name: Output folder or checkpoint of a run, a LoRA adapter, or any causal language model.
        baseline: Another model; None for the one that the training of the first began from, where that is recorded and
            at hand.
        with_baseline: Whether there is to be a baseline.
        base_model: Base of an adapter `name`, where it has moved.
        dtype, load_in_4bit, device, trust_remote_code: As in `load_finished`.
        options: How the command line calls `name` and `baseline`, for messages.

    Raises:
        ValueError: when a model or the device is not found.
        ImportError: when bitsandbytes is needed and not installed.
    """
    hub = {"trust_remote_code": trust_remote_code}
    base = base_model or adapter_base(name)
    source = find_policy(name, hub, option=options[0], base_model=base, base_option="--base_model")
    notes = []
    if base_model is not None and source.adapter is None:
        notes.append(f"`--base_model` has no effect: '{name}' is a whole model, not an adapter.")
    tokenizer = load_tokenizer(name, hub, base_model=base)
    check_loading(load_in_4bit=load_in_4bit, device=device)
    found: tuple[str | None, PolicySource | None] = (None, None)
    if with_baseline and source.adapter is not None and (baseline is None or _same(baseline, source.base)):
        found = (source.base, None)
        notes.append(f"The baseline is the base '{source.base}': the same model with its adapter off.")
    elif with_baseline and baseline is not None:
        found = (baseline, find_policy(baseline, hub, option=options[1]))
    elif with_baseline and (recorded := find_base(name)) is not None and not _same(recorded, name):
        try:
            found = (recorded, find_policy(recorded, hub))
            notes.append(f"The baseline is '{recorded}', where training began.")
        except ValueError:
            notes.append(f"Training began from '{recorded}', which is not at hand; `{options[1]}` names a baseline.")
    loading = {"dtype": dtype, "load_in_4bit": load_in_4bit, "device": device, "trust_remote_code": trust_remote_code}
    return Pair(name, source, tokenizer, *found, loading, tuple(notes))


def load_pair(pair: Pair) -> Iterator[Member]:
    """Load the model, and then the baseline, if there is one; a model that is no longer used is freed in between.

    Raises:
        ValueError, OSError: when weights cannot be read.
    """
    title = f"baseline {_short(pair.baseline or '')}"
    if pair.baseline is not None and pair.baseline_source is None:
        loaded = load_finished(pair.name, pair.source, pair.tokenizer, **pair.loading)
        assert isinstance(loaded.model, PeftModel)
        yield Member(_short(pair.name), loaded.causal_lm, loaded.tokenizer, nullcontext)
        yield Member(title, loaded.causal_lm, loaded.tokenizer, loaded.model.disable_adapter)
        return
    yield _alone(_short(pair.name), load_finished(pair.name, pair.source, pair.tokenizer, **pair.loading))
    if pair.baseline is not None and pair.baseline_source is not None:
        tokenizer = load_tokenizer(pair.baseline, {"trust_remote_code": pair.loading["trust_remote_code"]})
        if tokenizer.chat_template is None:  # a base and the chat model that was made of it
            tokenizer.chat_template = pair.tokenizer.chat_template
        yield _alone(title, load_finished(pair.baseline, pair.baseline_source, tokenizer, **pair.loading))


def _alone(title: str, loaded: Any) -> Member:
    return Member(title, loaded.causal_lm, loaded.tokenizer, nullcontext)


def _same(one: str, other: str) -> bool:
    """Return whether two names are one model."""
    paths = [Path(path).expanduser() for path in (one, other)]
    return one == other or all(path.is_dir() for path in paths) and paths[0].samefile(paths[1])


def _short(name: str, limit: int = 40) -> str:
    """Return a name that fits over a column; the end of a path tells more than its beginning."""
    line = one_line(name)
    return line if len(line) <= limit else f"…{line[1 - limit :]}"
