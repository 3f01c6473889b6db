# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""How completions are sampled: one small interface, transformers' `generate` and continuous batching behind it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

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

# Options of `generate` that shape the distribution after every processor of the caller's: `generate` must draw then.
_APPLIED_LAST = {"typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "watermarking_config"}


class Completions(NamedTuple):
    """What an engine sampled for N prompts.

    Attributes:
        ids: Token ids of each completion, with the token that ended it and nothing after.
        terminated: Whether each completion ended by itself, and not at the length limit.
        logps: Log-probability of each token under the distribution it was sampled from, in nats; None when the engine
            was not asked for them.
    """

    ids: list[list[int]]
    terminated: list[bool]
    logps: list[list[float]] | None


class GenerationEngine(Protocol):
    """Samples one completion per prompt."""

    def __call__(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], on_progress: Callable[[int], Any] | None = None
    ) -> Completions:
        """Sample one completion per prompt.

        Args:
            model: Causal LM in eval mode.
            prompt_ids: Unpadded token ids of each prompt.
            on_progress: Called with the number of completions finished since the last call.
        """
        ...


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's EOS and all that the model declares (end of turn, ...)."""
    declared = model.generation_config.eos_token_id
    ids = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.insert(0, tokenizer.eos_token_id)
    return ids


class TransformersEngine:
    """Sampling with `model.generate`.

    Nothing of the model's own generation configuration counts: a `top_p` or `repetition_penalty` in it would sample
    from another distribution than the one whose log-probabilities are learned. Where a completion ends is recorded
    while it is sampled and not read off its ids, so a pad token that equals the EOS token does no harm.

    Args:
        tokenizer: Tokenizer of the model, with a pad token.
        eos_token_ids: Tokens that end a completion.
        max_new_tokens: Length limit in tokens.
        temperature, top_p, top_k, min_p, repetition_penalty: The sampling distribution; by default the model's own.
        stop_strings: Texts that end a completion.
        batch_size: Prompts sampled at a time.
        return_logps: Also return the log-probabilities that were sampled from. They are collected token by token, so
            that no step's scores outlive the next.
        generation_kwargs: Further arguments of `GenerationConfig`.
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
    ):
        self.tokenizer = tokenizer
        self.batches = MicroBatches(batch_size, "local_rollout_forward_batch_size")
        self.return_logps = return_logps
        # The distribution is shaped by the processors below, in this order, so that the recorder sees the final one.
        self.processors: list[LogitsProcessor] = []
        if repetition_penalty != 1.0:
            self.processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
        if temperature != 1.0:
            self.processors.append(TemperatureLogitsWarper(temperature))
        if top_k > 0:
            self.processors.append(TopKLogitsWarper(top_k))
        if top_p < 1.0:
            self.processors.append(TopPLogitsWarper(top_p))
        if min_p is not None:
            self.processors.append(MinPLogitsWarper(min_p))
        self.draws = _APPLIED_LAST.isdisjoint(generation_kwargs or {})
        self.endings: list[StoppingCriteria] = [EosTokenCriteria(eos_token_ids)] if eos_token_ids else []
        if stop_strings:
            self.endings.append(StopStringCriteria(tokenizer, stop_strings))
        self.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=not self.draws,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=eos_token_ids or None,
            **{"disable_compile": True, **(generation_kwargs or {})},
        )

    def __call__(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], on_progress: Callable[[int], Any] | None = None
    ) -> Completions:
        """Sample one completion per prompt; see [`GenerationEngine`]."""
        out = Completions([], [], [] if self.return_logps else None)

        def sample(some: list[list[int]]) -> None:
            batch = self._sample(model, some)
            out.ids.extend(batch.ids)
            out.terminated.extend(batch.terminated)
            if out.logps is not None and batch.logps is not None:
                out.logps.extend(batch.logps)
            if on_progress is not None:
                on_progress(len(batch.ids))

        self.batches.run(prompt_ids, sample, "sampling")
        return out

    @torch.no_grad()
    def _sample(self, model: PreTrainedModel, prompt_ids: list[list[int]]) -> Completions:
        longest = max(map(len, prompt_ids))
        pad = self.tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompt_ids], device=model.device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=model.device)
        ending = _Ending(self.endings, longest)
        recorder = _SampledLogprobs() if self.return_logps else None
        draw = _Draw() if self.draws else None
        with _own_generation_config(model, self.generation_config):
            sequences = model.generate(
                input_ids,
                attention_mask=mask,
                generation_config=self.generation_config,
                logits_processor=LogitsProcessorList(
                    [*self.processors, *([recorder] if recorder else []), *([draw] if draw else [])]
                ),
                stopping_criteria=StoppingCriteriaList([ending]),
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


class _Ending(StoppingCriteria):
    """Remembers at which length each sequence first met one of the `criteria`."""

    def __init__(self, criteria: list[StoppingCriteria], prompt_length: int):
        self.criteria = criteria
        self.prompt_length = prompt_length
        self.lengths: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.lengths is None:
            self.lengths = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        done = torch.zeros_like(self.lengths, dtype=torch.bool)
        for criterion in self.criteria:
            done |= criterion(input_ids, scores, **kwargs)
        first = done & (self.lengths == 0)
        self.lengths[first] = input_ids.shape[1] - self.prompt_length
        return self.lengths > 0

    def result(self, sequences: Tensor) -> tuple[list[int], list[bool]]:
        """Length of each completion, and whether it ended by itself."""
        assert self.lengths is not None
        terminated = self.lengths > 0
        full = sequences.shape[1] - self.prompt_length
        return self.lengths.masked_fill(~terminated, full).tolist(), terminated.tolist()


class _Draw(LogitsProcessor):
    """Draws the next token, and leaves `generate` nothing but to take the only one that is possible.

    `torch.multinomial` makes a random number for every token of the vocabulary; one for each sequence will do.
    """

    def __init__(self) -> None:
        self._broken: Tensor | None = None  # sequences whose scores were not finite at some step

    def check(self) -> None:
        """Raise where a token was drawn from something that is no distribution.

        Raises:
            RuntimeError: when the scores of a sequence held NaN or infinity.
        """
        if self._broken is not None and (count := int(self._broken.sum())):
            raise RuntimeError(
                f"The policy's logits were not finite for {count} of {len(self._broken)} completions; its weights are "
                "not finite, or its dtype is too narrow (use bf16 or float32)."
            )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # In float32 the sum over a large vocabulary would swallow unlikely tokens; Apple's GPUs have nothing wider.
        dtype = torch.float32 if scores.device.type == "mps" else torch.float64
        cumulative = torch.softmax(scores, dim=-1, dtype=torch.float32).cumsum(-1, dtype=dtype)
        # Collected on the device: asking at every token would wait for it.
        broken = ~torch.isfinite(cumulative[:, -1])
        self._broken = broken if self._broken is None else self._broken | broken
        point = torch.rand(len(scores), 1, dtype=dtype, device=scores.device) * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, point, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class _SampledLogprobs(LogitsProcessor):
    """Collects the log-probability of every sampled token, holding one step's scores at a time."""

    def __init__(self):
        self.log_probs: Tensor | None = None
        self.collected: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._collect(input_ids)
        self.log_probs = torch.log_softmax(scores.float(), dim=-1)
        return scores

    def _collect(self, sequences: Tensor) -> None:
        if self.log_probs is not None:
            self.collected.append(self.log_probs.gather(-1, sequences[:, -1:]))

    def result(self, sequences: Tensor) -> Tensor:
        """Log-probabilities of all sampled tokens, shape (B, C)."""
        self._collect(sequences)
        self.log_probs = None
        return torch.cat(self.collected, dim=1)


@contextmanager
def _own_generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Hide the model's generation configuration, from which `generate` fills in whatever ours leaves at None."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def _cast_as_autocast_would(model: PreTrainedModel) -> Iterator[None]:
    """Give float32 weights the dtype of this thread's autocast, for the length of a block.

    Autocast belongs to a thread, and continuous batching calls the model from another one. Its cache takes the dtype of
    the weights besides. Autocast keeps a cast copy of the weights too, so this takes no more memory.
    """
    kind = model.device.type
    cast: list[tuple[torch.nn.Parameter, Tensor]] = []
    try:
        if torch.is_autocast_enabled(kind):
            for parameter in model.parameters():
                if parameter.dtype == torch.float32:
                    cast.append((parameter, parameter.data))
                    parameter.data = parameter.data.to(torch.get_autocast_dtype(kind))
        yield
    finally:
        for parameter, data in cast:
            parameter.data = data


class ContinuousBatchingEngine:
    """Sampling with transformers' continuous batching (`model.generate_batch`), with a paged KV cache.

    Finished completions make room for the next prompt.

    Args:
        tokenizer: Tokenizer of the model.
        eos_token_ids: Tokens that end a completion.
        max_new_tokens: Length limit in tokens.
        temperature, top_p, top_k: The sampling distribution.
        return_logps: Also return the log-probabilities that were sampled from.
        config: Arguments of `ContinuousBatchingConfig`. By default the cache takes half of the free memory;
            transformers' own default of 90% leaves nothing for learning.

    Raises:
        ImportError: when transformers has no continuous batching.
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
        return_logps: bool = False,
        config: dict[str, Any] | None = None,
    ):
        from transformers.generation import ContinuousBatchingConfig

        self.eos_token_ids = set(eos_token_ids)
        self.max_new_tokens = max_new_tokens
        self.return_logps = return_logps
        self.config = ContinuousBatchingConfig(
            **{"max_memory_percent": 0.5, "return_logprobs": return_logps, **(config or {})}
        )
        self.generation_config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=eos_token_ids or None,
        )

    def __call__(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], on_progress: Callable[[int], Any] | None = None
    ) -> Completions:
        """Sample one completion per prompt; see [`GenerationEngine`]."""
        with torch.no_grad(), _own_generation_config(model, self.generation_config), _cast_as_autocast_would(model):
            try:
                outputs = model.generate_batch(
                    prompt_ids,
                    generation_config=self.generation_config,
                    continuous_batching_config=self.config,
                    progress_bar=False,
                )
            except (MemoryError, ValueError) as error:
                raise RuntimeError(
                    f"Continuous batching cannot start ({error}); set `max_memory_percent`, `max_batch_tokens` or "
                    "`num_blocks` in `transformers_continuous_batching_config`."
                ) from error
        results = list(outputs.values())
        failed = [r.error for r in results if r.error is not None]
        if failed or len(results) != len(prompt_ids):
            raise RuntimeError(
                f"Continuous batching finished {len(results) - len(failed)} of {len(prompt_ids)} prompts"
                f"{f' (first error: {failed[0]})' if failed else ''}; set `use_transformers_continuous_batching=False`."
            )
        if on_progress is not None:
            on_progress(len(results))
        ids = [list(r.generated_tokens) for r in results]
        return Completions(
            ids,
            [bool(row) and row[-1] in self.eos_token_ids for row in ids],
            [list(r.logprobs) for r in results] if self.return_logps else None,
        )


# Engines by name; the setting `use_<name>` chooses one, "generate" is the engine of a run that chooses none. A
# constructor names the settings of `PPOConfig` that its engine follows; `config` is the mapping `<name>_config`.
ENGINES: dict[str, Callable[..., GenerationEngine]] = {
    "generate": TransformersEngine,
    "transformers_continuous_batching": ContinuousBatchingEngine,
}
