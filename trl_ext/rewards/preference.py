# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`PreferenceReward`: a reward model with a scalar head, read by its own tokenizer and chat template."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .base import RewardValueError, Text, conversation
from .scoring import SequenceScorer


class PreferenceReward:
    """(logit - center) / scale of a reward model, for prompt and completion together.

    Conversations are rendered by the reward model's own chat template, plain text is prompt + completion with the
    special tokens that its tokenizer adds. Longer texts than the model takes lose their beginning.

    Args:
        model: name or path of a model, loaded at the first use, or a model; either with one label.
        tokenizer: its tokenizer; by default found under the model's name.
        chat_template: a Jinja template in place of the tokenizer's.
        chat_template_kwargs: further variables for the template.
        append_eos: end plain text with the EOS token, as TRL's `RewardTrainer` does; templates write their own.
        center: subtracted from the logit, see `calibrate`.
        scale: divides the difference; positive.
        batch_size: texts per forward pass; texts are sorted by length first.
        max_length: tokens per text, by default the model's limit.
        device: where the model runs; by default one loaded by name goes to the accelerator, if there is one.
        dtype: the weights' precision, by default as saved.
        trust_remote_code: run the code of a model that brings its own.
        name: name in logs, by default the model's.

    Raises:
        ValueError: `scale` is not positive; at the first use: no such model, or one with several labels.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        append_eos: bool = False,
        center: float = 0.0,
        scale: float = 1.0,
        batch_size: int = 32,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        name: str | None = None,
    ):
        if not scale > 0:
            raise ValueError(f"scale is {scale}: it must be positive.")
        self.center, self.scale = center, scale
        self.chat_template, self.chat_template_kwargs = chat_template, dict(chat_template_kwargs or {})
        self.append_eos = append_eos
        self.scorer = SequenceScorer(
            model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            truncation_side="left",
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            check_config=_check_scalar_head,
        )
        self.__name__ = self.scorer.name if name is None else name

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: list[list[int]] | None = None,
        on_progress: Callable[[int], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """N rewards."""
        return [(score - self.center) / self.scale for score in self.scores(prompts, completions, on_progress)]

    def scores(
        self, prompts: Sequence[Text], completions: Sequence[Text], on_progress: Callable[[int], None] | None = None
    ) -> list[float]:
        """N raw logits, neither centred nor scaled."""
        if len(prompts) != len(completions):
            raise ValueError(f"Got {len(prompts)} prompts for {len(completions)} completions: give one each.")
        if not prompts:
            return []
        conversational = not isinstance(prompts[0], str)
        texts = [self._text(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        # a template writes the special tokens itself: adding them would double the first
        logits = self.scorer.logits(texts, add_special_tokens=not conversational, on_progress=on_progress)
        return logits[:, 0].tolist()

    def calibrate(self, prompts: Sequence[Text], completions: Sequence[Text]) -> tuple[float, float]:
        """Sets `center` and `scale` so that these reference completions have mean 0 and standard deviation 1.

        Reference completions are the dataset's, or the initial policy's (detail 9 of "The N Implementation Details of
        RLHF with PPO").

        Returns:
            The new center and scale.

        Raises:
            ValueError: fewer than two completions, or the same score for all.
        """
        scores = torch.tensor(self.scores(prompts, completions), dtype=torch.float64)
        spread = scores.std(correction=0).item() if len(scores) > 1 else 0.0
        if not spread > 0:
            raise ValueError(
                f"calibrate got {len(scores)} completions with a standard deviation of {spread:g}: give at least two "
                f"that score differently."
            )
        self.center, self.scale = scores.mean().item(), spread
        return self.center, self.scale

    def state_dict(self) -> dict[str, float]:
        return {"center": self.center, "scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.center, self.scale = state["center"], state["scale"]

    def _text(self, prompt: Text, completion: Text) -> str:
        if isinstance(prompt, str) and isinstance(completion, str):
            eos = (self.scorer.tokenizer.eos_token or "") if self.append_eos else ""
            text = prompt + completion
            return text if eos and text.endswith(eos) else text + eos
        if isinstance(prompt, str) or isinstance(completion, str):
            raise RewardValueError(
                f"'{self.__name__}' got a {type(prompt).__name__} as prompt and a {type(completion).__name__} as "
                f"completion: give two strings or two lists of messages."
            )
        tokenizer = self.scorer.tokenizer
        if self.chat_template is None and getattr(tokenizer, "chat_template", None) is None:
            raise RewardValueError(
                f"The tokenizer of reward model '{self.__name__}' has no chat template for conversations: pass "
                f"chat_template=, or plain text."
            )
        return str(
            tokenizer.apply_chat_template(
                conversation(prompt, completion),
                tokenize=False,
                chat_template=self.chat_template,
                **self.chat_template_kwargs,
            )
        )


def _check_scalar_head(config: Any) -> None:
    if config.num_labels != 1:
        raise RewardValueError(
            f"A reward model has one label and '{config.name_or_path or config.model_type}' has {config.num_labels}: "
            f"give a model trained with num_labels=1, or use ToxicityReward for a classifier."
        )
