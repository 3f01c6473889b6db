# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Sampling with transformers' `generate`."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
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

from trl_ext.actor_critic.caches import check_static_cache, selectable_cache, static_cache
from trl_ext.checks.generation import APPLIED_LAST
from trl_ext.micro_batches import MicroBatches

from .protocol import Completions, GenerationEngine, own_generation_config

_REPORT_SECONDS = 0.2  # between two reports of progress


class TransformersEngine(GenerationEngine):
    """Sampling with `model.generate`.

    The model's own generation configuration is not read: a `top_p` or `repetition_penalty` in it would sample from
    another distribution than the one whose log-probabilities are learned. Where a completion ends is recorded
    while it is sampled and not read off its ids, so a pad token that equals the EOS token does no harm.

    Once half of the completions of a batch are finished they leave it, with their part of the KV cache, and `generate`
    goes on with the others; the random numbers of a completion stay the same. That takes a cache of plain key-value
    layers that grows, and neither `generation_kwargs` nor `stopping_criteria`, which may count from where `generate`
    began.

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
        cache_implementation: "static" for a KV cache of fixed size, with which `generate` compiles a token's pass on a
            GPU.
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
        cache_implementation: Literal["static"] | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        stopping_criteria: Sequence[StoppingCriteria] = (),
    ):
        self.tokenizer = tokenizer
        self.batches = MicroBatches(batch_size, "local_rollout_forward_batch_size")
        self.return_logps = return_logps
        # The distribution is shaped by the processors below, in this order, so that the recorder sees the final one.
        self.penalty = RepetitionPenaltyLogitsProcessor(repetition_penalty) if repetition_penalty != 1.0 else None
        self.processors: list[LogitsProcessor] = []
        greedy = temperature == 0
        if temperature != 1.0 and not greedy:
            self.processors.append(TemperatureLogitsWarper(temperature))
        if top_k > 0:
            self.processors.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            self.processors.append(TopPLogitsWarper(top_p))
        if min_p is not None:
            self.processors.append(MinPLogitsWarper(min_p))
        self.draws = not greedy and APPLIED_LAST.isdisjoint(generation_kwargs or {})
        self.endings: list[StoppingCriteria] = [EosTokenCriteria(eos_token_ids)] if eos_token_ids else []
        if stop_strings:
            self.endings.append(StopStringCriteria(tokenizer, stop_strings))
        self.endings.extend(stopping_criteria)
        self.static = cache_implementation == "static"
        self.compacts = not (self.static or stopping_criteria or generation_kwargs)
        do_sample = not (greedy or self.draws)
        self.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            **({"temperature": 1.0, "top_p": 1.0, "top_k": 0} if do_sample else {}),  # transformers' own `top_k` is 50
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=eos_token_ids or None,
            **{"disable_compile": not self.static, **(generation_kwargs or {})},
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
        batch = _Batch(mask, self.generation_config.max_new_tokens)
        cache = self._cache(model, batch)
        ending = _Ending(self.endings, batch, count, compacts=self.compacts and cache is not None)
        recorder = _SampledLogprobs(batch) if self.return_logps else None
        draw = _Draw(batch) if self.draws else None
        penalty = _Unpadded(self.penalty, batch) if self.penalty else None
        processors = [p for p in (penalty, *self.processors, recorder, draw) if p is not None]
        while True:
            sequences = self._generate(model, input_ids, mask, cache, processors, ending)
            batch.keep(sequences)
            if recorder:
                recorder.collect(sequences)
            going = ending.unfinished()
            if cache is None or not ending.compacts or len(going) == 0 or batch.columns == batch.width:
                break
            cache.batch_select_indices(going)
            input_ids, batch.rows = sequences[going], batch.rows[going]
            mask = nn.functional.pad(mask[going], (0, batch.columns - mask.shape[1]), value=1)
        if draw:
            draw.check()
        rows, (lengths, terminated) = batch.sequences[:, longest:].tolist(), ending.result()
        logps = recorder.logps.tolist() if recorder else None
        return Completions(
            [row[:n] for row, n in zip(rows, lengths, strict=True)],
            terminated,
            [row[:n] for row, n in zip(logps, lengths, strict=True)] if logps is not None else None,
        )

    def _cache(self, model: PreTrainedModel, batch: "_Batch") -> Cache | None:
        """Return the empty cache of a batch; None where `generate` makes one."""
        if self.static:
            check_static_cache(model)
            return static_cache(model.config, batch.prompt_length, batch.width - batch.prompt_length)
        return selectable_cache(model) if self.compacts else None

    def _generate(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        mask: Tensor,
        cache: Cache | None,
        processors: list[LogitsProcessor],
        ending: "_Ending",
    ) -> Tensor:
        """Return the sequences that one call of `generate` makes of `input_ids`."""
        config = copy.copy(self.generation_config)
        config.max_new_tokens = ending.batch.width - input_ids.shape[1]
        with own_generation_config(model, config):
            return model.generate(
                input_ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([ending]),
                synced_gpus=False,  # under FSDP the model is gathered, and no process needs the steps of another
                **({} if cache is None else {"past_key_values": cache}),
            )


class _Batch:
    """N sequences that are sampled together, and which of them still are.

    Args:
        mask: Prompt tokens that are no padding, (N, prompt columns).
        max_new_tokens: Greatest length of a completion.

    Attributes:
        prompt_length: Columns of the prompts.
        padding: How many of them are padding, (N,); on the left.
        rows: Numbers of the sequences that are still in the batch, int64.
        columns: Columns of prompts and completions so far.
        sequences: Prompts and completions so far, (N, prompt and completion columns).
    """

    def __init__(self, mask: Tensor, max_new_tokens: int):
        n, self.prompt_length = mask.shape
        self.columns = self.prompt_length
        self.padding = self.prompt_length - mask.sum(1)
        self.rows = torch.arange(n, device=mask.device)
        self.sequences = mask.new_zeros(n, self.prompt_length + max_new_tokens)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def width(self) -> int:
        """Columns of prompts and of completions of the greatest length."""
        return self.sequences.shape[1]

    def keep(self, sequences: Tensor) -> None:
        """Take over the sequences that are still in the batch."""
        self.columns = sequences.shape[1]
        self.sequences[self.rows, : self.columns] = sequences


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
    """Remembers at which length each sequence first met one of the `criteria`, and keeps `count` up to date.

    With `compacts` it also ends a call of `generate` in which half of the sequences are finished.
    """

    def __init__(self, criteria: list[StoppingCriteria], batch: _Batch, count: _Count, *, compacts: bool):
        self.criteria, self.batch, self.count, self.compacts = criteria, batch, count, compacts
        self.lengths = torch.zeros(len(batch), dtype=torch.long, device=batch.rows.device)

    def __call__(self, input_ids: Tensor, logits: Any, **kwargs: Any) -> Tensor:
        lengths = self.lengths[self.batch.rows]
        done = torch.zeros_like(lengths, dtype=torch.bool)
        for criterion in self.criteria:
            # A stop string is one of the completion: the end of the prompt is no part of it.
            start = self.batch.prompt_length if isinstance(criterion, StopStringCriteria) else 0
            done |= criterion(input_ids[:, start:], logits, **kwargs)
        length = input_ids.shape[1] - self.batch.prompt_length
        lengths = torch.where(done & (lengths == 0), length, lengths)
        self.lengths[self.batch.rows] = lengths
        if self.count.is_due():
            known = self.lengths.tolist()
            self.count.to(sum(n > 0 for n in known), sum(n or length for n in known))
        finished = lengths > 0
        return finished | (2 * finished.sum() >= len(finished)) if self.compacts else finished

    def unfinished(self) -> Tensor:
        """Return the positions, among the sequences in the batch, of those that go on, int64."""
        return torch.nonzero(self.lengths[self.batch.rows] == 0).squeeze(1)

    def result(self) -> tuple[list[int], list[bool]]:
        """Return the length of each completion, and whether it ended by itself."""
        terminated = self.lengths > 0
        full = self.batch.columns - self.batch.prompt_length
        return self.lengths.masked_fill(~terminated, full).tolist(), terminated.tolist()


class _Unpadded(LogitsProcessor):
    """Shows a processor the first token of each prompt in the place of its padding, which nobody has said.

    Where the padding token is the EOS token too, a penalty for it would let completions of short prompts end later.
    """

    def __init__(self, processor: LogitsProcessor, batch: _Batch) -> None:
        self.processor, self.batch = processor, batch

    def __call__(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        padding = self.batch.padding[self.batch.rows].unsqueeze(1)
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        first = input_ids.gather(1, padding)
        return self.processor(torch.where(columns < padding, first, input_ids), logits)  # type: ignore[arg-type]


class _Draw(LogitsProcessor):
    """Draws the next token, and sets the logits of all others to -inf, so that `generate` takes the drawn one.

    `torch.multinomial` makes a random number for every token of the vocabulary; one for each sequence is enough, and
    sequences that have left the batch are given theirs too, so that those of the others do not depend on it.
    """

    def __init__(self, batch: _Batch) -> None:
        self.batch = batch
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
        if self._broken is None:
            self._broken = torch.zeros(len(self.batch), dtype=torch.bool, device=logits.device)
        self._broken[self.batch.rows] |= ~torch.isfinite(cumulative[:, -1])
        numbers = torch.rand(len(self.batch), 1, dtype=dtype, device=logits.device)
        point = numbers[self.batch.rows] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, point, right=True).clamp(max=logits.shape[1] - 1)
        return torch.full_like(logits, -torch.inf).scatter_(1, token, 0.0)


class _SampledLogprobs(LogitsProcessor):
    """Collects the log-probability of every sampled token, holding one step's logits at a time.

    Attributes:
        logps: The log-probabilities, (N, completion columns); 0 after the end of a completion.
    """

    def __init__(self, batch: _Batch):
        self.batch = batch
        self.log_probs: Tensor | None = None
        shape = len(batch), batch.width - batch.prompt_length
        self.logps = torch.zeros(shape, device=batch.rows.device)

    def __call__(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        self.collect(input_ids)
        self.log_probs = torch.log_softmax(logits.float(), dim=-1)
        return logits

    def collect(self, sequences: Tensor) -> None:
        """Take the log-probabilities of the last tokens of the sequences in the batch, unless that was done."""
        if self.log_probs is not None:
            column = sequences.shape[1] - self.batch.prompt_length - 1
            self.logps[self.batch.rows, column] = self.log_probs.gather(-1, sequences[:, -1:]).squeeze(1)
            self.log_probs = None
