# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`SequenceScorer`: logits of a sequence classifier for many texts, for every reward function with a model."""

import copy
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.messages.printable import first_line
from trl_ext.micro_batches import MicroBatches

from .base import Message, RewardValueError
from .classifiers import (
    check_is_classifier,
    check_logits,
    check_vocabulary,
    is_adapter,
    load_classifier,
    load_tokenizer,
    position_limit,
    read_config,
)
from .padding import Row, alike, pad, padding_matters, padding_token

Source: TypeAlias = str | os.PathLike[str]  # a name or a path


def _is_movable(model: PreTrainedModel) -> bool:
    return not getattr(model, "is_quantized", False)  # transformers refuses to move or cast those


class SequenceScorer:
    """A sequence-classification model with its own tokenizer, device and precision.

    A text's logits are those that the model gives for that text alone, whatever else is in the batch. A model given by
    name is loaded at the first use and is left out of pickles and copies.

    Args:
        model: name or path of a model or of a PEFT adapter, or a model, which stays on its device.
        tokenizer: tokenizer of the model, or its name; by default the one under the model's name. It is copied.
        batch_size: texts per forward pass.
        max_length: tokens per text; by default the limit of tokenizer and model. Longer texts are truncated.
        truncation_side: end of a longer text that is cut off.
        device: where the model runs. By default one loaded by name goes to the accelerator, if there is one.
        dtype: the weights' precision, by default as saved; logits are always float32.
        trust_remote_code: run the code of a model that brings its own.
        check_config: called with the model's config before the weights are loaded; raises for unusable models.
    """

    def __init__(
        self,
        model: Source | PreTrainedModel,
        *,
        tokenizer: Source | PreTrainedTokenizerBase | None = None,
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
        if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype is {dtype!r}: give a floating-point type of torch, such as 'bfloat16'.")
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        tokenizer = os.fspath(tokenizer) if isinstance(tokenizer, os.PathLike) else tokenizer
        if not isinstance(model, str) and not hasattr(model, "config"):
            raise TypeError(f"A reward model is {model!r:.60} ({type(model).__name__}): give a model or its name.")
        self.given_model, self.given_tokenizer = model, tokenizer
        self.batches = MicroBatches(batch_size, "batch_size")
        self.max_length, self.truncation_side = max_length, truncation_side
        self.device = None if device is None else torch.device(device)
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.trust_remote_code, self.check_config = trust_remote_code, check_config
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._model: PreTrainedModel | None = None
        self._one_length: bool | None = None  # whether only texts of one length share a batch; None: not known yet
        self._warned = False
        if not isinstance(model, str):
            self.load()

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.given_model, str):
            return {**self.__dict__, "_model": None, "_tokenizer": None}
        return self.__dict__

    @property
    def name(self) -> str:
        """The last part of the model's name or path."""
        model = self.given_model
        path = (model if isinstance(model, str) else getattr(model, "name_or_path", "")) or ""
        return path.rstrip("/").split("/")[-1] or type(model).__name__

    @property
    def model(self) -> PreTrainedModel:
        """The model, loaded on first use."""
        return self.load()[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded on first use."""
        return self.load()[1]

    def check(self) -> Any:
        """Read the model's config and tokenizer, and check that they exist and fit together.

        Returns:
            The model's config.

        Raises:
            RewardValueError: no such model or tokenizer, unusable labels, or the tokenizer of another model.
        """
        by_name = isinstance(self.given_model, str)
        config = read_config(self.given_model, self.trust_remote_code) if by_name else self.given_model.config  # type: ignore[arg-type,union-attr]
        if self.check_config is not None:
            self.check_config(config)
        if self._tokenizer is None:
            tokenizer = self._find_tokenizer()
            check_vocabulary(tokenizer, config, self.name)
            tokenizer.truncation_side = self.truncation_side
            self._tokenizer = tokenizer
        return config

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load model and tokenizer unless they are loaded, and score one word.

        Raises:
            RewardValueError: as `check` raises, or the model has untrained weights, no head, or fewer positions than
                `max_length`.
        """
        if self._model is None or self._tokenizer is None:
            if not isinstance(self.given_model, str):
                check_is_classifier(self.given_model, self.name)
            config = self.check()
            assert self._tokenizer is not None
            model = self._load_model(config).eval()
            self._check_lengths(model)
            self._model = model
            try:
                word = "a" + (self._tokenizer.eos_token or "")  # encoder-decoders read the EOS
                check_logits(self._forward(self.encode([word])), model, self.name)
            except BaseException:
                self._model = None
                raise
        return self._model, self._tokenizer

    def _load_model(self, config: Any) -> PreTrainedModel:
        if not isinstance(self.given_model, str):
            model = self.given_model
            if _is_movable(model) and (self.device is not None or self.dtype is not None):
                model.to(device=self.device, dtype=self.dtype)  # type: ignore[call-arg]
            return model
        model = load_classifier(self.given_model, config, self.dtype, self.trust_remote_code)
        if is_adapter(self.given_model):
            # An adapter does not record the padding token of its training; RewardTrainer pads with this one.
            tokenizer = self._tokenizer
            assert tokenizer is not None
            token = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            model.config.get_text_config().pad_token_id = token
        device = self.device or torch.accelerator.current_accelerator(check_available=True)
        return model.to(device) if device is not None and _is_movable(model) else model

    def _find_tokenizer(self) -> PreTrainedTokenizerBase:
        source = self.given_tokenizer
        if source is None:
            source = getattr(self.given_model, "tokenizer", None)  # reward adapters bring theirs
        if source is None:
            source = self.given_model if isinstance(self.given_model, str) else self.given_model.name_or_path
        if isinstance(source, PreTrainedTokenizerBase):
            return copy.deepcopy(source)
        if not isinstance(source, str):
            raise RewardValueError(f"The tokenizer of '{self.name}' is a {type(source).__name__}: pass `tokenizer`.")
        if not source:
            raise RewardValueError(f"The {type(self.given_model).__name__} names no tokenizer: pass `tokenizer`.")
        return load_tokenizer(source, self.trust_remote_code)

    def _check_lengths(self, model: PreTrainedModel) -> None:
        limit = position_limit(model)
        if self.max_length is not None and self.max_length > limit:
            raise RewardValueError(
                f"max_length is {self.max_length} and '{self.name}' has {limit} positions: lower it, or leave it out."
            )
        assert self._tokenizer is not None
        special = self._tokenizer.num_special_tokens_to_add()
        if self._limit(model) <= special:
            raise RewardValueError(
                f"'{self.name}' reads {self._limit(model)} tokens, of which its tokenizer takes {special} for special "
                f"tokens: raise max_length, or give a model that reads longer texts."
            )

    def encode(self, texts: Sequence[str]) -> list[Row]:
        """Return token ids of N texts, with the special tokens that the tokenizer adds; empty texts are fine."""
        model, tokenizer = self.load() if self._model is None else (self._model, self._tokenizer)
        assert tokenizer is not None
        limit = self._limit(model)
        encoded = tokenizer(list(texts), padding=False, verbose=False)
        rows = _rows(encoded)
        too_long = [i for i, row in enumerate(rows) if len(row["input_ids"]) > limit]
        if too_long:
            self._warn_of_truncation(len(too_long), len(rows), limit)
            cut = tokenizer([texts[i] for i in too_long], padding=False, truncation=True, max_length=limit)
            for i, row in zip(too_long, _rows(cut), strict=True):
                rows[i] = row
        return rows

    def encode_conversations(self, conversations: Sequence[Sequence[Message]], **options: Any) -> list[Row]:
        """Return token ids of N conversations, written by the chat template with every special token.

        Args:
            conversations: N lists of messages.
            options: options of `apply_chat_template`: `chat_template` and variables of the template.

        Raises:
            ValueError: the template refuses a conversation.
        """
        model, tokenizer = self.load()
        limit = self._limit(model)
        rows = []
        for messages in conversations:
            try:
                encoded = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
            except Exception as error:
                roles = ", ".join(str(message.get("role")) for message in messages)
                raise ValueError(
                    f"The chat template of reward model '{self.name}' refuses a conversation of {roles} "
                    f"({first_line(error)}): pass chat_template=, or other prompts."
                ) from error
            rows.append({"input_ids": list(encoded["input_ids"])})  # type: ignore[index,arg-type]
        too_long = [row for row in rows if len(row["input_ids"]) > limit]
        if too_long:
            self._warn_of_truncation(len(too_long), len(rows), limit)
        kept = slice(-limit, None) if self.truncation_side == "left" else slice(limit)
        return [{"input_ids": row["input_ids"][kept]} for row in rows]

    def _warn_of_truncation(self, count: int, total: int, limit: int) -> None:
        if self.max_length is None and not self._warned:
            self._warned = True
            end = "beginning" if self.truncation_side == "left" else "end"
            warnings.warn(
                f"{count} of {total} texts have more than the {limit} tokens that '{self.name}' reads, and lose their "
                f"{end}: give a model that reads longer texts, or set max_length. There is no warning for later texts.",
                stacklevel=4,
            )

    def logits(
        self, texts: Sequence[str] | Sequence[Row], *, on_progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Return the model's logits for each text.

        Args:
            texts: N texts, or N rows of `encode` or `encode_conversations`.
            on_progress: called after each forward pass with the number of texts in it.

        Returns:
            Tensor (N, labels), float32, on the CPU, in the order of `texts`.
        """
        model, _ = self.load()
        if not texts:
            return torch.zeros(0, len(model.config.id2label or ()))
        model.eval()
        rows: list[Row] = self.encode(texts) if isinstance(texts[0], str) else list(texts)  # type: ignore[arg-type]
        rows = [row if row["input_ids"] else {"input_ids": [self._stand_in()]} for row in rows]
        eos = model.config.eos_token_id if getattr(model.config, "is_encoder_decoder", False) else None
        if eos is None and self._one_length is None and len({len(row["input_ids"]) for row in rows}) > 1:
            self._one_length = padding_matters(self._forward, rows)
            if self._one_length:
                warnings.warn(
                    f"'{self.name}' ({type(model).__name__}) scores padded texts differently: texts are "
                    f"batched by length, which is slower.",
                    stacklevel=3,
                )
        rows_logits: list[Tensor] = [torch.empty(0)] * len(rows)

        def score(indices: list[int]) -> None:
            for i, row in zip(indices, self._forward([rows[i] for i in indices]), strict=True):
                rows_logits[i] = row
            if on_progress is not None:
                on_progress(len(indices))

        # Neighbours in length waste little on padding; the longest first, so that memory runs out early or never.
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        for group in alike(rows, order, one_length=bool(self._one_length), eos=eos):
            self.batches.run(group, score, "scoring")
        return torch.stack(rows_logits)

    @torch.inference_mode()
    def _forward(self, rows: list[Row]) -> Tensor:
        """Return the logits (B, labels) of one batch."""
        model, tokenizer = self._model, self._tokenizer
        assert model is not None and tokenizer is not None
        with padding_token(model.config, rows) as token:
            inputs = pad(rows, token, tokenizer.pad_token_type_id)
            output = model(**{key: value.to(model.device) for key, value in inputs.items()})
        logits = getattr(output, "logits", None)
        return logits if logits is None else logits.float().cpu()  # type: ignore[return-value]

    def _stand_in(self) -> int:
        """Return a token in place of an empty text: models cannot run on an empty sequence."""
        tokenizer = self.tokenizer
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
        return next((token for token in known if token is not None), 0)

    def _limit(self, model: PreTrainedModel) -> int:
        """Return the most tokens that tokenizer and model take."""
        if self.max_length is not None:
            return self.max_length
        assert self._tokenizer is not None
        declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        declared = declared if isinstance(declared, int) and declared > 0 else math.inf
        limit = min(self._tokenizer.model_max_length, position_limit(model), declared)
        return int(limit) if limit < 1e9 else 1_000_000


def _rows(encoded: Mapping[str, Any]) -> list[Row]:
    """Return a tokenizer's output as rows, without the attention mask.

    Token types that are all 0 are left out: models with token types assume them, and GPT-2 would read 0 as a word.
    """
    rows = [{"input_ids": list(ids)} for ids in encoded["input_ids"]]
    for row, types in zip(rows, encoded.get("token_type_ids", ()), strict=False):
        if any(types):
            row["token_type_ids"] = list(types)
    return rows
