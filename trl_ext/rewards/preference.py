# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""`PreferenceReward`: a reward model with a scalar head, with its own tokenizer and chat template."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.text.rows import Text

from .base import Ids, RewardValueError, Texts, conversation
from .padding import Row
from .representation import constructor_repr
from .scoring import SequenceScorer, Source


class PreferenceReward:
    """(logit - center) / scale of a reward model, for prompt and completion together.

    The model reads the tokens that TRL's `RewardTrainer` makes of the same prompt and completion. Plain text is prompt
    + completion + EOS, with the special tokens that the reward model's tokenizer adds. The chat template writes
    conversations with all their special tokens. Texts longer than the model's limit lose their beginning. The rule is
    the same for reward models by name, as objects, as adapters, in ensembles and as judges.

    Args:
        model: name or path of a model or of a PEFT adapter, loaded at the first use or when a trainer is made, or a
            model; with one label.
        tokenizer: tokenizer of the model; by default the one under the model's name, or saved beside an adapter.
        chat_template: a Jinja template in place of the tokenizer's.
        chat_template_kwargs: further variables for the template.
        append_eos: end plain text with the tokenizer's EOS token, if there is one and the completion does not end in
            it. Turn it off for a reward model that was trained on texts without EOS.
        center: subtracted from the logit, see `calibrate`.
        scale: divides the difference; positive.
        batch_size: texts per forward pass; texts are sorted by length first.
        max_length: tokens per text, by default the model's limit.
        device: where the model runs; by default one loaded by name goes to the accelerator, if there is one.
        dtype: the weights' precision, by default as saved.
        trust_remote_code: run the code of a model that brings its own.
        name: name in logs, by default the model's.

    Raises:
        ValueError: `scale` is not positive; at the first use: no such model, or a model with several labels.
    """

    def __init__(
        self,
        model: Source | PreTrainedModel,
        *,
        tokenizer: Source | PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        append_eos: bool = True,
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
        self._calibrated = False
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

    __repr__ = constructor_repr

    def __call__(
        self,
        prompts: Texts,
        completions: Texts,
        completion_ids: Ids = None,
        on_progress: Callable[[int], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return N rewards."""
        return [(score - self.center) / self.scale for score in self.scores(prompts, completions, on_progress)]

    def scores(
        self, prompts: Texts, completions: Texts, on_progress: Callable[[int], None] | None = None
    ) -> list[float]:
        """Return N raw logits, neither centred nor scaled."""
        if len(prompts) != len(completions):
            raise ValueError(f"Got {len(prompts)} prompts for {len(completions)} completions: give one each.")
        if not prompts:
            return []
        pairs = list(zip(prompts, completions, strict=True))
        for prompt, completion in pairs:
            self._check_pair(prompt, completion, like=prompts[0])
        if isinstance(prompts[0], str):
            rows = self.scorer.encode([self._text(prompt, completion) for prompt, completion in pairs])  # type: ignore[arg-type]
        else:
            rows = self._encode_conversations(pairs)
        return self.scorer.logits(rows, on_progress=on_progress)[:, 0].tolist()

    def calibrate(self, prompts: Sequence[Text], completions: Sequence[Text]) -> tuple[float, float]:
        """Set `center` and `scale` so that these reference completions have mean 0 and standard deviation 1.

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
        self._calibrated = True
        return self.center, self.scale

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able state for a checkpoint."""
        return {"center": self.center, "scale": self.scale, "calibrated": self._calibrated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `calibrate` had set; a center and a scale that were given are settings, and stay."""
        if state.get("calibrated", True):  # an earlier version did not tell
            self.center, self.scale, self._calibrated = state["center"], state["scale"], True

    def _check_pair(self, prompt: Text, completion: Text, like: Text) -> None:
        if isinstance(prompt, str) != isinstance(completion, str):
            raise RewardValueError(
                f"'{self.__name__}' got a {type(prompt).__name__} as prompt and a {type(completion).__name__} as "
                f"completion: give two strings or two lists of messages."
            )
        if isinstance(prompt, str) != isinstance(like, str):
            raise RewardValueError(f"'{self.__name__}' got both texts and conversations: give one kind.")

    def _text(self, prompt: str, completion: str) -> str:
        eos = self.scorer.tokenizer.eos_token if self.append_eos else None
        return prompt + completion + (eos if eos and not completion.endswith(eos) else "")

    def _encode_conversations(self, pairs: Sequence[tuple[Any, Any]]) -> list[Row]:
        tokenizer, options = self.scorer.tokenizer, dict(self.chat_template_kwargs)
        if self.chat_template is not None:
            options["chat_template"] = self.chat_template
        elif getattr(tokenizer, "chat_template", "its own") is None:
            raise RewardValueError(
                f"The tokenizer of reward model '{self.__name__}' has no chat template for conversations: pass "
                f"chat_template=, or plain text."
            )
        return self.scorer.encode_conversations([conversation(*pair) for pair in pairs], **options)


def _check_scalar_head(config: Any) -> None:
    if config.num_labels != 1:
        raise RewardValueError(
            f"A reward model has one label and '{config.name_or_path or config.model_type}' has {config.num_labels}: "
            f"give a model trained with num_labels=1, or use ToxicityReward for a classifier."
        )
