# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Sampling with transformers' `generate`."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import EosTokenCriteria, StopStringCriteria

from trl_ext.micro_batches import MicroBatches

from .protocol import Completions, own_generation_config

# Options of `generate` that shape the distribution after the caller's processors; with them `generate` draws itself.
_APPLIED_LAST = {"typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "watermarking_config"}
_REPORT_SECONDS = 0.2  # between two reports of progress


class TransformersEngine:
    """Sampling with `model.generate`.

    The model's own generation configuration is not read: a `top_p` or `repetition_penalty` in it would sample from
    another distribution than the one whose log-probabilities are learned. Where a completion ends is recorded
    while it is sampled and not read off its ids, so a pad token that equals the EOS token does no harm.

    Args:
        tokenizer: Tokenizer of the model, with a pad token.
        eos_token_ids: Tokens that end a completion.
        max_new_tokens: Length limit in tokens.
        temperature, top_p, top_k, min_p, repetition_penalty: The sampling distribution; by default the model's own.
            Temperature 0 takes the most likely token every time.
        stop_strings: Texts that end a completion.
        batch_size: Prompts sampled at a time.
        return_logps: Also return the log-probabilities that were sampled from. They are collected token by token, so
            that no step's logits outlive the next.
        generation_kwargs: Further arguments of `GenerationConfig`.
        stopping_criteria: Further ends of a completion; each is called after every token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_ids: list[int],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop_strings: list[str] | None = None,
        batch_size: int = 64,
        return_logps: bool = False,
        generation_kwargs: dict[str, Any] | None = None,
        stopping_criteria: Sequence[StoppingCriteria] = (),
    ):
        self.tokenizer = tokenizer
        self.batches = MicroBatches(batch_size, "local_rollout_forward_batch_size")
        self.return_logps = return_logps
        # The distribution is shaped by the processors below, in this order, so that the recorder sees the final one.
        self.processors: list[LogitsProcessor] = []
        if repetition_penalty != 1.0:
            self.processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
        greedy = temperature == 0
        if temperature != 1.0 and not greedy:
            self.processors.append(TemperatureLogitsWarper(temperature))
        if top_k > 0:
            self.processors.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            self.processors.append(TopPLogitsWarper(top_p))
        if min_p is not None:
            self.processors.append(MinPLogitsWarper(min_p))
        self.draws = not greedy and _APPLIED_LAST.isdisjoint(generation_kwargs or {})
        self.endings: list[StoppingCriteria] = [EosTokenCriteria(eos_token_ids)] if eos_token_ids else []
        if stop_strings:
            self.endings.append(StopStringCriteria(tokenizer, stop_strings))
        self.endings.extend(stopping_criteria)
        self.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=not (greedy or self.draws),
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=eos_token_ids or None,
            **{"disable_compile": True, **(generation_kwargs or {})},
        )

    def __call__(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], on_progress: Callable[..., Any] | None = None
    ) -> Completions:
        """Sample one completion per prompt; see [`GenerationEngine`]."""
        out = Completions([], [], [] if self.return_logps else None)

        def sample(some: list[list[int]]) -> None:
            count = _Count(on_progress or (lambda completions, tokens: None))
            try:
                batch = self._sample(model, some, count)
            except RuntimeError:
                count.to(0, 0)  # out of memory, perhaps, and begun again in halves
                raise
            count.to(len(batch.ids), sum(map(len, batch.ids)))
            out.ids.extend(batch.ids)
            out.terminated.extend(batch.terminated)
            if out.logps is not None and batch.logps is not None:
                out.logps.extend(batch.logps)

        self.batches.run(prompt_ids, sample, "sampling")
        return out

    @torch.no_grad()
    def _sample(self, model: PreTrainedModel, prompt_ids: list[list[int]], count: "_Count") -> Completions:
        longest = max(map(len, prompt_ids))
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompt_ids], device=model.device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=model.device)
        ending = _Ending(self.endings, longest, count)
        recorder = _SampledLogprobs() if self.return_logps else None
        draw = _Draw() if self.draws else None
        with own_generation_config(model, self.generation_config):
            sequences = model.generate(
                input_ids,
                attention_mask=mask,
                generation_config=self.generation_config,
                logits_processor=LogitsProcessorList(
                    [*self.processors, *([recorder] if recorder else []), *([draw] if draw else [])]
                ),
                stopping_criteria=StoppingCriteriaList([ending]),
                synced_gpus=False,  # under FSDP the model is gathered, and no process needs the steps of another
            )
        if draw:
            draw.check()
        rows, (lengths, terminated) = sequences[:, longest:].tolist(), ending.result(sequences)
        logps = recorder.result(sequences).tolist() if recorder else None
        return Completions(
            [row[:n] for row, n in zip(rows, lengths, strict=True)],
            terminated,
            [row[:n] for row, n in zip(logps, lengths, strict=True)] if logps is not None else None,
        )


class _Count:
    """Reports completions and tokens of a batch, each as the difference to what was reported before."""

    def __init__(self, on_progress: Callable[..., Any]):
        self.on_progress, self.completions, self.tokens = on_progress, 0, 0
        self.time = time.monotonic()

    def is_due(self) -> bool:
        """Return whether a while has passed: numbers are read off a device, which then has to finish its work."""
        return time.monotonic() - self.time >= _REPORT_SECONDS

    def to(self, completions: int, tokens: int) -> None:
        """Report that so many are there by now."""
        self.on_progress(completions - self.completions, tokens - self.tokens)
        self.completions, self.tokens, self.time = completions, tokens, time.monotonic()


class _Ending(StoppingCriteria):
    """Remembers at which length each sequence first met one of the `criteria`, and keeps `count` up to date."""

    def __init__(self, criteria: list[StoppingCriteria], prompt_length: int, count: _Count):
        self.criteria = criteria
        self.prompt_length = prompt_length
        self.count = count
        self.lengths: Tensor | None = None

    def __call__(self, input_ids: Tensor, logits: Any, **kwargs: Any) -> Tensor:
        if self.lengths is None:
            self.lengths = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        done = torch.zeros_like(self.lengths, dtype=torch.bool)
        for criterion in self.criteria:
            done |= criterion(input_ids, logits, **kwargs)
        first = done & (self.lengths == 0)
        length = input_ids.shape[1] - self.prompt_length
        self.lengths[first] = length
        if self.count.is_due():
            lengths = self.lengths.tolist()
            self.count.to(sum(n > 0 for n in lengths), sum(n or length for n in lengths))
        return self.lengths > 0

    def result(self, sequences: Tensor) -> tuple[list[int], list[bool]]:
        """Return the length of each completion, and whether it ended by itself."""
        assert self.lengths is not None
        terminated = self.lengths > 0
        full = sequences.shape[1] - self.prompt_length
        return self.lengths.masked_fill(~terminated, full).tolist(), terminated.tolist()


class _Draw(LogitsProcessor):
    """Draws the next token, and sets the logits of all others to -inf, so that `generate` takes the drawn one.

    `torch.multinomial` makes a random number for every token of the vocabulary; one for each sequence is enough.
    """

    def __init__(self) -> None:
        self._broken: Tensor | None = None  # sequences whose logits were not finite at some step

    def check(self) -> None:
        """Refuse tokens that were drawn from logits that are not finite.

        Raises:
            RuntimeError: when the logits of a sequence held NaN or infinity.
        """
        if self._broken is not None and (count := int(self._broken.sum())):
            raise RuntimeError(
                f"The policy's logits were not finite for {count} of {len(self._broken)} completions; its weights are "
                "not finite, or its dtype is too narrow (use bf16 or float32)."
            )

    def __call__(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        # A float32 sum over a large vocabulary rounds unlikely tokens away; Apple's GPUs have no wider type.
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        cumulative = torch.softmax(logits, dim=-1, dtype=torch.float32).cumsum(-1, dtype=dtype)
        # Collected on the device, since reading the flag at every token would wait for the device.
        broken = ~torch.isfinite(cumulative[:, -1])
        self._broken = broken if self._broken is None else self._broken | broken
        point = torch.rand(len(logits), 1, dtype=dtype, device=logits.device) * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, point, right=True).clamp(max=logits.shape[1] - 1)
        return torch.full_like(logits, -torch.inf).scatter_(1, token, 0.0)


class _SampledLogprobs(LogitsProcessor):
    """Collects the log-probability of every sampled token, holding one step's logits at a time."""

    def __init__(self):
        self.log_probs: Tensor | None = None
        self.collected: list[Tensor] = []

    def __call__(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        self._collect(input_ids)
        self.log_probs = torch.log_softmax(logits.float(), dim=-1)
        return logits

    def _collect(self, sequences: Tensor) -> None:
        if self.log_probs is not None:
            self.collected.append(self.log_probs.gather(-1, sequences[:, -1:]))

    def result(self, sequences: Tensor) -> Tensor:
        """Return the log-probabilities of all sampled tokens, shape (B, C)."""
        self._collect(sequences)
        self.log_probs = None
        return torch.cat(self.collected, dim=1)
