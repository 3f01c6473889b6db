# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A model and the baseline that it is seen beside: found by name, then loaded."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext._compat import AdapterSwitch
from trl_ext.actor_critic.adapters import REFERENCE_ADAPTER
from trl_ext.actor_critic.model import REFERENCE_FOLDER
from trl_ext.actor_critic.names import PolicySource, find_policy, load_tokenizer
from trl_ext.folders import is_whole_model
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
        baseline_source: The baseline as found; None where it is on the model's own base: the adapter in the folder
            `baseline` where `by_adapter`, the base with adapters off otherwise.
        loading: Options of `load_finished`, for both.
        notes: What the user should know about the choice.
        by_adapter: Whether the baseline is another adapter on the model's base.
    """

    name: str
    source: PolicySource
    tokenizer: PreTrainedTokenizerBase
    baseline: str | None
    baseline_source: PolicySource | None
    loading: dict[str, Any]
    notes: tuple[str, ...]
    by_adapter: bool = False


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
            at hand: for an adapter the one in its folder `reference`, or else its base.
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
    by_adapter = False
    if with_baseline:
        found, by_adapter, note = _baseline(name, source, baseline, hub, options[1])
        notes += [note] if note else []
    loading = {"dtype": dtype, "load_in_4bit": load_in_4bit, "device": device, "trust_remote_code": trust_remote_code}
    return Pair(name, source, tokenizer, *found, loading, tuple(notes), by_adapter)


def _baseline(
    name: str, source: PolicySource, given: str | None, hub: dict[str, Any], option: str
) -> tuple[tuple[str | None, PolicySource | None], bool, str]:
    """Return the baseline's name and source, whether it is an adapter on the model's base, and what to tell."""
    if source.adapter is not None:
        start = Path(name) / REFERENCE_FOLDER
        if is_whole_model(start) and (given is None or _same(given, str(start))):
            return (str(start), None), True, f"The baseline is the adapter '{start}', where training began."
        if given is None or _same(given, source.base):
            told = f"The baseline is the base '{source.base}': the same model with its adapter off."
            return (source.base, None), False, told
    if given is not None:
        return (given, find_policy(given, hub, option=option)), False, ""
    recorded = find_base(name)
    if recorded is None or _same(recorded, name):
        return (None, None), False, ""
    try:
        return (recorded, find_policy(recorded, hub)), False, f"The baseline is '{recorded}', where training began."
    except ValueError:
        told = f"Training began from '{recorded}', which is not at hand; `{option}` names a baseline."
        return (None, None), False, told


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
        yield Member(title, loaded.causal_lm, loaded.tokenizer, _switched(pair, loaded.model))
        return
    yield _alone(_short(pair.name), load_finished(pair.name, pair.source, pair.tokenizer, **pair.loading))
    if pair.baseline is not None and pair.baseline_source is not None:
        tokenizer = load_tokenizer(pair.baseline, {"trust_remote_code": pair.loading["trust_remote_code"]})
        if tokenizer.chat_template is None:  # a base and the chat model that was made of it
            tokenizer.chat_template = pair.tokenizer.chat_template
        yield _alone(title, load_finished(pair.baseline, pair.baseline_source, tokenizer, **pair.loading))


def _switched(pair: Pair, model: PeftModel) -> Callable[[], AbstractContextManager[Any]]:
    """Return the context in which a model is its baseline: its adapter off, or the one that training began from."""
    if not pair.by_adapter:
        return model.disable_adapter
    model.load_adapter(str(pair.baseline), REFERENCE_ADAPTER, torch_device=str(model.device))
    model.eval()
    return partial(AdapterSwitch(model).use, REFERENCE_ADAPTER)


def _alone(title: str, loaded: Any) -> Member:
    return Member(title, loaded.causal_lm, loaded.tokenizer, nullcontext)


def _same(one: str, other: str) -> bool:
    """Return whether two names are one model."""
    paths = [Path(path).expanduser() for path in (one, other)]
    return one == other or all(path.is_dir() for path in paths) and paths[0].samefile(paths[1])


def _short(name: str, limit: int = 40) -> str:
    """Return a name that fits over a column: of a long path the last folder, which tells most, is kept whole."""
    line = one_line(name)
    if len(line) > limit:
        line = Path(line).name or line
    return line if len(line) <= limit else f"…{line[1 - limit :]}"
