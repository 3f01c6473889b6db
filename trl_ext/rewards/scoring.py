# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`SequenceScorer`: logits of a sequence-classification model for many texts. What model-based rewards share."""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..micro_batches import MicroBatches
from .base import RewardValueError

_HEADS = ("classifier", "score", "classification_head", "pre_classifier", "sequence_summary", "logits_proj")


def _is_movable(model: PreTrainedModel) -> bool:
    return not getattr(model, "is_quantized", False)  # transformers refuses to move or cast those


class SequenceScorer:
    """A sequence-classification model with its own tokenizer, device and precision.

    A model given by name is loaded at the first use and is left out of pickles and copies.

    Args:
        model: name or path of a model, or a model, which is used where it is.
        tokenizer: the model's tokenizer, or its name; by default that of the model's name. It is copied.
        batch_size: texts per forward pass.
        max_length: tokens per text; by default as many as tokenizer and model take. Longer texts are truncated.
        truncation_side: which end of a longer text is cut off.
        device: where the model runs. By default one loaded by name goes to the accelerator, if there is one.
        dtype: the weights' precision, by default as saved; logits are always float32.
        trust_remote_code: run the code of a model that brings its own.
        check_config: called with the model's config once it is loaded; raises if the model will not do.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        truncation_side: Literal["left", "right"] = "right",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        check_config: Callable[[Any], object] | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be 1 or more.")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}: it must be 1 or more, or None for the model's own limit.")
        self.given_model, self.given_tokenizer = model, tokenizer
        self.batches = MicroBatches(batch_size, "batch_size")
        self.max_length, self.truncation_side = max_length, truncation_side
        self.device = None if device is None else torch.device(device)
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.trust_remote_code, self.check_config = trust_remote_code, check_config
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
        if not isinstance(model, str):
            self.load()

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.given_model, str):
            return {**self.__dict__, "_loaded": None}
        return self.__dict__

    @property
    def name(self) -> str:
        """The last part of the model's name or path."""
        model = self.given_model
        path = (model if isinstance(model, str) else model.name_or_path) or ""
        return path.rstrip("/").split("/")[-1] or type(model).__name__

    @property
    def model(self) -> PreTrainedModel:
        return self.load()[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.load()[1]

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads model and tokenizer, if that has not happened.

        Raises:
            RewardValueError: there is no such model or tokenizer, or its head has no trained weights.
        """
        if self._loaded is None:
            model, tokenizer = self._load_model(), self._load_tokenizer()
            if self.check_config is not None:
                self.check_config(model.config)
            tokenizer.truncation_side = self.truncation_side
            # Decoders find a text's last token by the pad id in their config, not by the attention mask.
            if tokenizer.pad_token_id is not None and model.config.get_text_config().pad_token_id is None:
                model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
            self._loaded = model.eval(), tokenizer
        return self._loaded

    def _load_model(self) -> PreTrainedModel:
        if not isinstance(self.given_model, str):
            model = self.given_model
            if _is_movable(model) and (self.device is not None or self.dtype is not None):
                model.to(device=self.device, dtype=self.dtype)  # type: ignore[call-arg]
            return model
        options = {} if self.dtype is None else {"dtype": self.dtype}
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                self.given_model, output_loading_info=True, trust_remote_code=self.trust_remote_code, **options
            )
        except (OSError, ValueError) as error:
            raise RewardValueError(
                f"'{self.given_model}' cannot be loaded as a sequence-classification model: give a name on the hub "
                f"or a local folder ({error})."
            ) from error
        untrained = sorted(key for key in info["missing_keys"] if key.split(".")[0] in _HEADS)
        if untrained:
            raise RewardValueError(
                f"'{self.given_model}' has no weights for {untrained}, so its scores would be random: give a model "
                f"trained for sequence classification."
            )
        device = self.device or torch.accelerator.current_accelerator(check_available=True)
        return model.to(device) if device is not None and _is_movable(model) else model

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        source = self.given_tokenizer
        if source is None:
            source = getattr(self.given_model, "tokenizer", None)  # reward adapters bring theirs
        if source is None:
            source = self.given_model if isinstance(self.given_model, str) else self.given_model.name_or_path
        if isinstance(source, PreTrainedTokenizerBase):
            return copy.deepcopy(source)
        if not source:
            raise RewardValueError(f"The {type(self.given_model).__name__} names no tokenizer: pass `tokenizer`.")
        try:
            return AutoTokenizer.from_pretrained(source, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:
            raise RewardValueError(f"No tokenizer is found under '{source}': pass `tokenizer` ({error}).") from error

    @torch.inference_mode()
    def logits(
        self,
        texts: list[str],
        *,
        add_special_tokens: bool = True,
        on_progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """The model's logits for each text.

        Args:
            texts: N texts; empty ones are fine.
            add_special_tokens: false for texts that a chat template has completed.
            on_progress: called after each forward pass with the number of texts in it.

        Returns:
            Tensor (N, labels), float32, on the CPU, in the order of `texts`.
        """
        model, tokenizer = self.load()
        if not texts:
            return torch.zeros(0, len(model.config.id2label or ()))
        model.eval()
        encoded = tokenizer(
            texts, truncation=True, max_length=self._limit(), padding=False, add_special_tokens=add_special_tokens
        )
        rows = [{key: values[i] or self._stand_in(key) for key, values in encoded.items()} for i in range(len(texts))]
        rows_logits: list[Tensor] = [torch.empty(0)] * len(rows)

        def score(indices: list[int]) -> None:
            inputs = self._pad([rows[i] for i in indices])
            scores = model(**{key: value.to(model.device) for key, value in inputs.items()}).logits.float().cpu()
            for i, row in zip(indices, scores, strict=True):
                rows_logits[i] = row
            if on_progress is not None:
                on_progress(len(indices))

        # Neighbours in length waste little on padding; the longest first, so that memory runs out early or never.
        self.batches.run(sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"])), score, "scoring")
        return torch.stack(rows_logits)

    def _pad(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        tokenizer = self.tokenizer
        if tokenizer.pad_token_id is not None:
            return dict(tokenizer.pad(rows, padding=True, padding_side="right", return_tensors="pt"))
        # Without a pad token any id does, as the attention mask hides it, unless a text ends in it: decoders take
        # the last token that is not padding for the text's last.
        ends = {row["input_ids"][-1] for row in rows}
        pad_id = next(i for i in range(len(ends) + 1) if i not in ends)
        self.model.config.get_text_config().pad_token_id = pad_id
        columns = {key: [torch.tensor(row[key]) for row in rows] for key in rows[0]}
        return {
            key: pad_sequence(values, batch_first=True, padding_value=pad_id if key == "input_ids" else 0)
            for key, values in columns.items()
        }

    def _stand_in(self, key: str) -> list[int]:
        """One token for a text of none: models cannot run on an empty sequence."""
        if key != "input_ids":
            return [1 if key == "attention_mask" else 0]
        tokenizer = self.tokenizer
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
        return [next((token for token in known if token is not None), 0)]

    def _limit(self) -> int:
        """Tokens that fit into tokenizer and model."""
        if self.max_length is not None:
            return self.max_length
        limits = [self.tokenizer.model_max_length]
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
                # RoBERTa and its kin count positions from behind the padding index
                limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
        declared = getattr(self.model.config, "max_position_embeddings", None)
        limits.append(declared if isinstance(declared, int) and declared > 0 else math.inf)
        limit = min(limits)
        return int(limit) if limit < 1e9 else 1_000_000
