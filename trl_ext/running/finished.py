# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models to use after training: any output folder or plain model, loaded and sampled from as in its run."""

import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.repocard import metadata_load
from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from trl_ext.actor_critic.adapters import saved_quantization
from trl_ext.actor_critic.loading import load_policy
from trl_ext.actor_critic.names import PolicySource, check_quantization_library, recorded_base
from trl_ext.experience.engines import TransformersEngine, eos_token_ids
from trl_ext.text.tokens import set_padding

__all__ = [
    "Finished",
    "Sampling",
    "adapter_base",
    "check_loading",
    "find_base",
    "load_finished",
    "quantization_of",
    "run_sampling",
]

CONFIG = "ppo_config.json"  # the settings of the run, beside every model that the trainer saves


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled; the fields are those of `PPOConfig`, and temperature 0 is greedy."""

    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_strings: list[str] | None = None
    generation_kwargs: Mapping[str, Any] = field(default_factory=dict)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, **changes: Any) -> "Sampling":
        """Return a copy with the `changes` that are not None, checked.

        Raises:
            ValueError: for a value out of range, in the words of the option.
        """
        new = replace(self, **{name: value for name, value in changes.items() if value is not None})
        if not 0 <= new.temperature < float("inf"):
            raise ValueError(f"`--temperature` is {new.temperature}; give 0, which is greedy, or more.")
        if not 0 < new.top_p <= 1:
            raise ValueError(f"`--top_p` is {new.top_p}; give more than 0 and at most 1, which is off.")
        if new.max_completion_length < 1:
            raise ValueError(f"`--max_completion_length` is {new.max_completion_length}; give 1 token or more.")
        return new

    def engine(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 64,
        stopping_criteria: tuple[StoppingCriteria, ...] = (),
    ) -> TransformersEngine:
        """Return the engine that samples so, with the ends of the model and of the tokenizer."""
        return TransformersEngine(
            tokenizer,
            eos_token_ids=eos_token_ids(model, tokenizer),
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop_strings=self.stop_strings,
            batch_size=batch_size,
            generation_kwargs=dict(self.generation_kwargs),
            stopping_criteria=stopping_criteria,
        )


class Finished(NamedTuple):
    """A loaded model, its tokenizer, which can pad, and where it came from."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    source: PolicySource

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The model that generates, with its adapter, if it has one, injected."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model


def run_sampling(folder: str) -> Sampling:
    """Return how the run that wrote a folder sampled; the defaults for any other model.

    Raises:
        ValueError: when the settings saved in the folder cannot be read.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        return Sampling()
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        known = {entry.name: saved[entry.name] for entry in fields(Sampling) if saved.get(entry.name) is not None}
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"'{path}' cannot be read as settings of a run; remove it to use the defaults.") from error
    return Sampling(**known)


def find_base(name: str) -> str | None:
    """Return the model that training began from: as recorded in the folder, or named by its model card; or None."""
    recorded = recorded_base(Path(name))
    if recorded is not None:
        return recorded
    card = Path(name) / "README.md"
    if not card.is_file():
        return None
    try:
        base = (metadata_load(card) or {}).get("base_model")
    except (OSError, ValueError):
        return None
    return base if isinstance(base, str) else None


def adapter_base(name: str) -> str | None:
    """Return the folder of the base of an adapter as recorded beside it, if it is there.

    The adapter's own configuration may name it relative to the folder that training was started in.
    """
    recorded = recorded_base(Path(name))
    return recorded if recorded is not None and Path(recorded).is_dir() else None


def load_finished(
    name: str,
    source: PolicySource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str | None = None,
    load_in_4bit: bool = False,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Finished:
    """Load a model that `find_policy` found, in eval mode.

    Args:
        name: Name or folder of the model.
        source: As found.
        tokenizer: As `load_tokenizer` loaded it.
        dtype: Such as "bfloat16"; None for that of the checkpoint.
        load_in_4bit: Quantize the weights to NF4. A base that was quantized in training is quantized anyhow.
        device: Such as "cpu" or "cuda:1"; None for the accelerator, if there is one.
        trust_remote_code: Whether the model may run code of its repository.

    Raises:
        ValueError, FileNotFoundError: when the weights cannot be read, or do not fit.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if dtype is not None:
        options["dtype"] = getattr(torch, dtype)
    quantization = quantization_of(name, source, dtype, load_in_4bit)
    if quantization is not None:
        options["quantization_config"] = quantization
    place = torch.device(device) if device else torch.accelerator.current_accelerator(check_available=True)
    base = source.base if source.adapter is not None else None
    model = load_policy(name, device=place, base_model=base, **options).eval()
    set_padding(tokenizer)
    return Finished(model, tokenizer, source)


def check_loading(*, load_in_4bit: bool, device: str | None) -> None:
    """Refuse a device that is not there, and a quantization whose library is not installed.

    Raises:
        ValueError: for a device.
        ImportError: for bitsandbytes.
    """
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"`--device {device}` is not a device of this machine; leave it out, or give cpu."
            ) from error
    if load_in_4bit:
        check_quantization_library(_nf4(None))


def quantization_of(
    name: str, source: PolicySource, dtype: str | None = None, load_in_4bit: bool = False
) -> BitsAndBytesConfig | None:
    """Return how the base of a model is to be quantized: as asked for, or as in training; None for not."""
    if load_in_4bit:
        return _nf4(dtype)
    saved = saved_quantization(Path(name)) if source.adapter is not None else None
    if saved is not None and importlib.util.find_spec("bitsandbytes") is None:
        warnings.warn(
            f"The base of '{name}' was quantized in training, and bitsandbytes is not installed: the original weights "
            "are used, so answers differ a little; install it with `pip install 'trl_ext[quantization]'`.",
            stacklevel=3,
        )
        return None
    return saved


def _nf4(dtype: str | None) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype or "bfloat16"),
    )
