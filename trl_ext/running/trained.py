# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A trained policy from its folder, with the reference that its training began from."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from trl_ext.actor_critic import ActorCritic
from trl_ext.actor_critic.interpolation import check_scalable
from trl_ext.actor_critic.loading import load_policy
from trl_ext.actor_critic.model import REFERENCE_FOLDER
from trl_ext.actor_critic.names import PolicySource, find_policy, load_tokenizer
from trl_ext.folders import is_whole_model
from trl_ext.text.tokens import set_padding

from .finished import adapter_base, check_loading, find_base, quantization_of

__all__ = ["Trained", "find_trained", "load_trained"]


class Trained(NamedTuple):
    """A trained policy and its reference, found and not loaded.

    Attributes:
        name: Folder of the policy.
        source: The policy as found.
        reference: Model or adapter that training began from; for an adapter None where that is its base.
        tokenizer: Its tokenizer, which can pad.
        loading: Further options of `load_trained`.
    """

    name: str
    source: PolicySource
    reference: str | None
    tokenizer: PreTrainedTokenizerBase
    loading: dict[str, Any]

    @property
    def start(self) -> str:
        """Name of the model at the start of training."""
        return self.reference or self.source.base


def find_trained(
    name: str,
    *,
    reference: str | None = None,
    base_model: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Trained:
    """Find a trained policy and its reference before either is loaded.

    Args:
        name: Folder of a policy that a trainer saved, or of any fine-tuned model or LoRA adapter.
        reference: Model that training began from; None for the one that the folder records.
        base_model: Base of an adapter, where it has moved.
        dtype: Such as "bfloat16", of the frozen base of an adapter; None for the checkpoint's own.
        device: Such as "cpu" or "cuda:1"; None for the accelerator, if there is one.
        trust_remote_code: Whether models may run code of their repository.

    Raises:
        ValueError: when a model is not found, the two do not belong together, or they cannot be interpolated.
        ImportError: when bitsandbytes is needed and not installed.
    """
    hub = {"trust_remote_code": trust_remote_code}
    base = base_model or adapter_base(name)
    source = find_policy(name, hub, option="DIR", base_model=base, base_option="--base_model")
    if source.adapter is None:
        reference = _recorded(name, reference)
        _check_alike(name, source, reference, find_policy(reference, hub, option="--reference"))
    else:
        if reference is not None:
            raise ValueError(
                "`--reference` is for whole models: that of an adapter is its base, or the adapter it started from; "
                "leave it out."
            )
        check_scalable(source.adapter)
        start = Path(name) / REFERENCE_FOLDER
        reference = str(start) if is_whole_model(start) else None
    check_loading(load_in_4bit=False, device=device)
    tokenizer = load_tokenizer(name, hub, base_model=base)
    set_padding(tokenizer)
    return Trained(name, source, reference, tokenizer, {"dtype": dtype, "device": device, **hub})


def load_trained(found: Trained) -> ActorCritic:
    """Load a policy with its reference; a whole model in float32.

    Raises:
        ValueError, FileNotFoundError: when weights cannot be read, or do not fit.
    """
    dtype, device = found.loading["dtype"], found.loading["device"]
    options: dict[str, Any] = {"trust_remote_code": found.loading["trust_remote_code"]}
    is_adapter = found.source.adapter is not None
    if is_adapter and dtype is not None:
        options["dtype"] = getattr(torch, dtype)
    if (quantization := quantization_of(found.name, found.source, dtype)) is not None:
        options["quantization_config"] = quantization
    place = torch.device(device) if device else torch.accelerator.current_accelerator(check_available=True)
    base = found.source.base if is_adapter else None
    policy = load_policy(found.name, trained=True, device=place, base_model=base, **options)
    model = ActorCritic(policy, reference_is_base=is_adapter and found.reference is None)
    if found.reference is not None:
        model.load_reference(found.reference)
    return model.eval()


def _recorded(name: str, given: str | None) -> str:
    """Return the model that the training of a whole model began from."""
    reference = given or find_base(name)
    if reference is None:
        raise ValueError(
            f"'{name}' does not record which model its training began from, or that model is gone; name it with "
            "`--reference`."
        )
    if Path(reference).is_dir() and Path(name).is_dir() and Path(reference).samefile(name):
        raise ValueError(f"`--reference {reference}` is the trained model itself; name the one that it began from.")
    return reference


def _check_alike(name: str, trained: PolicySource, reference: str, start: PolicySource) -> None:
    """Refuse two whole models whose weights do not correspond."""
    if start.adapter is not None:
        raise ValueError(f"`--reference {reference}` is an adapter, and '{name}' a whole model; merge it first.")
    ours, theirs = (source.config.get_text_config() for source in (trained, start))
    for what in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings"):
        mine, other = getattr(ours, what, None), getattr(theirs, what, None)
        if mine != other:
            raise ValueError(
                f"'{name}' has `{what}` {mine} and its reference '{reference}' {other}; name the model that training "
                "began from with `--reference`."
            )
