# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Sequence classifiers and tokenizers given by name, and checks that they fit together."""

import math
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForSequenceClassification, PeftConfig
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import cached_file, find_adapter_config_file

from trl_ext.messages.printable import first_line
from trl_ext.text.tokens import has_vocabulary

from .base import RewardValueError

_HEAD_NAMES = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
# Tables of learned positions, by the ends of their names: BERT, GPT-2, OPT and BART.
_POSITIONS = ("position_embeddings", "wpe", "embed_positions")


def is_adapter(name: str) -> bool:
    """Return whether a folder or a repository holds a PEFT adapter instead of a whole model."""
    if Path(name).is_dir():
        return (Path(name) / "adapter_config.json").is_file()
    try:
        return find_adapter_config_file(name) is not None
    except (OSError, ValueError):
        return False


def read_config(name: str, trust_remote_code: bool) -> Any:
    """Return the configuration of a classifier, or of an adapter's base with as many labels as the adapter has.

    Raises:
        RewardValueError: the configuration cannot be loaded, or the adapter has no trained head.
    """
    try:
        if not is_adapter(name):
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
            check_scores(config, f"'{name}'")
            return config
        base = PeftConfig.from_pretrained(name).base_model_name_or_path
        labels = _adapter_labels(name)
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code, num_labels=labels)
        config.name_or_path = name
        return config
    except RewardValueError:
        raise
    except Exception as error:
        raise not_loadable(name, error) from error


def check_scores(config: Any, subject: str) -> None:
    """Refuse the configuration of a model that generates text; `subject` names the model.

    Raises:
        RewardValueError: if it is one.
    """
    names = config.architectures or []
    if names and set(names) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        raise RewardValueError(
            f"{subject} is a {names[0]}, which generates text and scores none: give a model that was trained for "
            "sequence classification."
        )


def not_loadable(name: str, error: BaseException) -> RewardValueError:
    """Return the error for a name that no classifier can be loaded from."""
    return RewardValueError(
        f"'{name}' cannot be loaded as a sequence-classification model: give a name on the hub or a local folder "
        f"({first_line(error)})."
    )


def _adapter_labels(name: str) -> int:
    file = cached_file(name, "adapter_model.safetensors")
    with safe_open(file, framework="pt") as tensors:
        heads = [key for key in tensors.keys() if key.endswith(_HEAD_NAMES) and "lora_" not in key]  # noqa: SIM118
        if not heads:
            raise RewardValueError(
                f"The adapter '{name}' has no trained head, so its scores would be random: train it with "
                f"LoraConfig(task_type='SEQ_CLS', modules_to_save=['score'])."
            )
        return tensors.get_slice(heads[0]).get_shape()[0]


def load_classifier(name: str, config: Any, dtype: torch.dtype | None, trust_remote_code: bool) -> PreTrainedModel:
    """Load the classifier called `name`; an adapter is put on its base.

    Raises:
        RewardValueError: the model cannot be loaded, or some of its weights are missing.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code} | ({} if dtype is None else {"dtype": dtype})
    missing: list[str] = []
    try:
        if is_adapter(name):
            model = AutoPeftModelForSequenceClassification.from_pretrained(
                name, num_labels=config.num_labels, **options
            )
        else:
            model, info = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **options)
            missing = sorted(info["missing_keys"])
    except Exception as error:
        raise not_loadable(name, error) from error
    if missing:
        raise RewardValueError(
            f"'{name}' has no weights for {missing[:3]}, so its scores would be random: give a model trained for "
            f"sequence classification."
        )
    return model


def load_tokenizer(source: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer under a name, or that of an adapter's base where none was saved beside the adapter.

    Raises:
        RewardValueError: no tokenizer can be loaded, or one without a vocabulary.
    """
    try:
        if is_adapter(source) and Path(source).is_dir() and not (Path(source) / "tokenizer_config.json").is_file():
            source = PeftConfig.from_pretrained(source).base_model_name_or_path or source
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise RewardValueError(
            f"No tokenizer is found under '{source}': pass `tokenizer` ({first_line(error)})."
        ) from error
    if not has_vocabulary(tokenizer):
        raise RewardValueError(f"No tokenizer is found under '{source}': pass `tokenizer` (it has no vocabulary).")
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any, name: str) -> None:
    """Refuse a tokenizer with token ids for which the model has no embeddings."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if isinstance(size, int) and highest >= size:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise RewardValueError(
            f"The tokenizer of '{name}' has token ids up to {highest} ({token!r}) and the model embeddings for {size}: "
            f"pass the tokenizer that the model was trained with, or resize its embeddings."
        )


def check_is_classifier(model: Any, name: str) -> None:
    """Refuse a model that generates text."""
    if getattr(model, "can_generate", bool)():
        raise RewardValueError(
            f"'{name}' is a {type(model).__name__}, which generates text and scores none: load it by "
            f"AutoModelForSequenceClassification."
        )


def check_logits(logits: Any, model: Any, name: str) -> None:
    """Refuse a model whose output for one text is not one finite number per label."""
    labels = model.config.num_labels
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (1, labels):
        raise RewardValueError(
            f"'{name}' is a {type(model).__name__}, whose output for a text is not {labels} numbers"
            f"{f' but of shape {shape}' if shape else ''}: give a sequence-classification model."
        )
    if not logits.isfinite().all():
        raise RewardValueError(
            f"'{name}' scores a text with {logits[0].tolist()}: its weights are damaged, or too large for "
            f"{model.dtype if hasattr(model, 'dtype') else 'their dtype'}."
        )


def position_limit(model: torch.nn.Module) -> float:
    """Return the number of tokens that a model has learned positions for; infinite where positions are computed."""
    limits = [math.inf]
    for name, module in model.named_modules():
        if name.endswith(_POSITIONS) and isinstance(module, torch.nn.Embedding):
            # RoBERTa's positions start behind the padding index (-1 was made the last one), those of OPT and BART at
            # an offset.
            start = 0 if module.padding_idx is None else (module.padding_idx + 1) % module.num_embeddings
            limits.append(module.num_embeddings - max(start, getattr(module, "offset", 0)))
    return min(limits)
