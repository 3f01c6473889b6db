# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`ToxicityReward`: a toxicity or hate-speech classifier as a reward; higher is less toxic."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .base import Ids, RewardValueError, Texts, completion_text, full_text
from .representation import constructor_repr
from .scoring import SequenceScorer, Source

Label = str | int
OUTPUTS = ("logit", "log_odds", "probability")

_TOXIC = r"(toxi|hate|hatred|offens|abus|insult|obscen|harmful|profan)"
_NEUTRAL = (
    r"(neutral|normal|clean|safe|okay|ok|none|neither|benign|harmless|acceptable|civil)|(non|not|no|un|in)" + _TOXIC
)


class ToxicityReward:
    """Negative toxicity by any sequence-classification model: HIGHER IS LESS TOXIC.

    With z the model's logits, T its toxic labels and N its other ones, `output` is

    - "logit": the raw logit of the one label in N ("nothate", "neutral"), the smoothest according to the Hugging Face
      detoxification guide; -logsumexp(z_T) if N has more than one label.
    - "log_odds": log p(N) - log p(T), which, unlike the raw logit, does not rise when both classes become likely.
    - "probability": p(N), in [0, 1], which saturates: there is little signal for very toxic texts.

    Single-label models (softmax) have p(T) = sum of softmax(z)_T. Multi-label models
    (`problem_type="multi_label_classification"`) and those with one logit have p(T) = max of sigmoid(z)_T, and
    "logit" and "log_odds" are both -max z_T.

    Toxic labels are found by name: "toxic", "toxicity", "hate", "offensive" and the like, or all but "neutral",
    "nothate", "non-toxic" and the like. In a multi-label model "toxic" or "toxicity" stands for all labels.

    Args:
        model: name or path of a model, loaded at the first use or when a trainer is made, or a model.
        tokenizer: tokenizer of the model; by default the one under the model's name.
        toxic_label: toxic label, its index, or a list of them, for labels with names such as "LABEL_1".
        output: "logit", "log_odds" or "probability", see above.
        include_prompt: score prompt and completion together, not the completion alone.
        batch_size: texts per forward pass; texts are sorted by length first.
        max_length: tokens per text, by default the model's limit. Longer texts lose their end, but with
            `include_prompt` their beginning, so that the completion is kept.
        device: where the model runs; by default one loaded by name goes to the accelerator, if there is one.
        dtype: the weights' precision, by default as saved.
        trust_remote_code: run the code of a model that brings its own.
        name: name in logs.

    Raises:
        ValueError: an unknown `output`; at the first use: no such model, or no label known to be toxic.
    """

    def __init__(
        self,
        model: Source | PreTrainedModel = "facebook/roberta-hate-speech-dynabench-r4-target",
        *,
        tokenizer: Source | PreTrainedTokenizerBase | None = None,
        toxic_label: Label | Sequence[Label] | None = None,
        output: Literal["logit", "log_odds", "probability"] = "logit",
        include_prompt: bool = False,
        batch_size: int = 32,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        name: str = "non_toxicity",
    ):
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}: choose one of {', '.join(OUTPUTS)}.")
        self.toxic_label, self.output, self.include_prompt = toxic_label, output, include_prompt
        self.__name__ = name
        self.scorer = SequenceScorer(
            model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            truncation_side="left" if include_prompt else "right",
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            check_config=self.toxic_indices,
        )

    __repr__ = constructor_repr

    def toxic_indices(self, config: Any = None) -> list[int]:
        """Return the indices of the toxic labels of a model with this `config`; by default of this reward's model."""
        config = self.scorer.model.config if config is None else config
        labels = [str(config.id2label[i]) for i in range(config.num_labels)]
        if self.toxic_label is None:
            return _find_toxic(labels, multi_label=_is_multi_label(config))
        wanted = [self.toxic_label] if isinstance(self.toxic_label, str | int) else list(self.toxic_label)
        if any(isinstance(label, bool) for label in wanted):
            raise RewardValueError(f"toxic_label {self.toxic_label!r} is no label: pass a label's name or its index.")
        indices = [label if isinstance(label, int) else _index(label, labels) for label in wanted]
        unknown = [label for label, i in zip(wanted, indices, strict=True) if not 0 <= i < len(labels)]
        if unknown or not indices:
            raise RewardValueError(f"toxic_label {self.toxic_label!r} is not among the model's labels {labels}.")
        if len(set(indices)) == len(labels) and not _is_multi_label(config):
            raise RewardValueError(f"toxic_label {self.toxic_label!r} is all of the model's labels: leave one out.")
        return sorted(set(indices))

    def toxicity(self, texts: list[str], on_progress: Callable[[int], None] | None = None) -> list[float]:
        """Return the probability that each text is toxic, in [0, 1].

        Args:
            texts: N texts.
            on_progress: called after each forward pass with the number of texts in it.
        """
        logits = self.scorer.logits(texts, on_progress=on_progress)
        return torch.sigmoid(-self._log_odds(logits)).tolist()

    def __call__(
        self,
        prompts: Texts,
        completions: Texts,
        completion_ids: Ids = None,
        on_progress: Callable[[int], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return N rewards; higher is less toxic."""
        if self.include_prompt:
            texts = [full_text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        else:
            texts = [completion_text(completion) for completion in completions]
        logits = self.scorer.logits(texts, on_progress=on_progress)
        if self.output == "logit":
            return self._non_toxic_logit(logits).tolist()
        log_odds = self._log_odds(logits)
        return (log_odds if self.output == "log_odds" else torch.sigmoid(log_odds)).tolist()

    def _split(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the other labels and of the toxic ones."""
        toxic = self.toxic_indices()
        others = [i for i in range(logits.shape[1]) if i not in toxic]
        return logits[:, others], logits[:, toxic]

    def _log_odds(self, logits: Tensor) -> Tensor:
        others, toxic = self._split(logits)
        if _is_multi_label(self.scorer.model.config):
            return -toxic.amax(dim=1)
        return others.logsumexp(dim=1) - toxic.logsumexp(dim=1)

    def _non_toxic_logit(self, logits: Tensor) -> Tensor:
        if _is_multi_label(self.scorer.model.config):
            return self._log_odds(logits)
        others, toxic = self._split(logits)
        return others[:, 0] if others.shape[1] == 1 else -toxic.logsumexp(dim=1)


def _is_multi_label(config: Any) -> bool:
    return config.problem_type == "multi_label_classification" or config.num_labels == 1


def _normal(label: str) -> str:
    return re.sub(r"[^a-z0-9]", "", label.lower())


def _index(label: str, labels: list[str]) -> int:
    return next((i for i, known in enumerate(labels) if _normal(known) == _normal(label)), -1)


def _find_toxic(labels: list[str], *, multi_label: bool) -> list[int]:
    """Return the indices of the toxic labels, by their names.

    Raises:
        RewardValueError: the names leave it open.
    """
    names = [_normal(label) for label in labels]
    for plain in ("toxic", "toxicity"):
        if multi_label and plain in names:
            return [names.index(plain)]
    neutral = [i for i, name in enumerate(names) if re.match(_NEUTRAL, name)]
    others = [i for i in range(len(names)) if i not in neutral]
    toxic = [i for i in others if re.search(_TOXIC, names[i])]
    if toxic and multi_label:
        return others  # "threat" belongs with "insult"
    if toxic and len(toxic) < len(names):
        return toxic
    if len(names) == 2 and len(neutral) == 1:
        return others
    if len(labels) == 1:
        raise RewardValueError(
            f"The model has one label, {labels[0]!r}, like a reward model: use PreferenceReward, or pass "
            f"toxic_label=0 if a high score means toxic."
        )
    raise RewardValueError(
        f"The model's labels {labels} do not tell which is toxic: pass toxic_label=, a label or its index."
    )
