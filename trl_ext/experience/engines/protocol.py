# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The interface of an engine, and helpers that engines share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


class Completions(NamedTuple):
    """Completions of N prompts.

    Attributes:
        ids: Token ids of each completion, with the token that ended it and nothing after.
        terminated: Whether each completion ended by itself, and not at the length limit.
        logps: Log-probability of each token under the distribution that it was sampled from, nats; None unless the
            engine was made with `return_logps`.
    """

    ids: list[list[int]]
    terminated: list[bool]
    logps: list[list[float]] | None


class GenerationEngine(Protocol):
    """Samples one completion per prompt.

    An engine that samples with the model itself needs no more than the call: a function is an engine too. One that
    holds a copy of the weights also has `weights_changed` and `close`.
    """

    def __call__(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], on_progress: Callable[..., Any] | None = None
    ) -> Completions:
        """Sample one completion per prompt.

        Args:
            model: Causal LM in eval mode.
            prompt_ids: Unpadded token ids of each prompt.
            on_progress: Called as `on_progress(completions, tokens)` with the numbers finished and sampled since the
                last call, from time to time; both negative where a batch is begun again. An engine that knows no tokens
                may leave them out.
        """
        ...

    def weights_changed(self) -> None:
        """Have the next call sample from the weights that the model has then; called before every rollout."""
        return None

    def close(self) -> None:
        """Give back memory and processes, at the end of training and after a failure; a later call begins anew."""
        return None


class AsyncEngine(GenerationEngine, Protocol):
    """An engine that samples outside of this process, from a copy of the weights, while the policy learns."""

    def prepare(
        self, model: PreTrainedModel, prompt_ids: list[list[int]]
    ) -> Callable[[Callable[..., Any]], Completions]:
        """Copy the weights and draw the random numbers that sampling needs.

        Args:
            model: Causal LM in eval mode.
            prompt_ids: Unpadded token ids of each prompt.

        Returns:
            A function of `on_progress` that samples one completion per prompt, and reads neither the model nor torch's
            generator: it may run in another thread. It ends early where `on_progress` raises, or the engine is closed.
        """
        ...


def asynchronous(engine: Any) -> AsyncEngine:
    """Return an engine that can sample while the policy learns.

    Raises:
        ValueError: for another.
    """
    if not hasattr(engine, "prepare"):
        raise ValueError(
            f"`async_rollouts` needs an engine with a method `prepare`, and {type(engine).__name__} has none; see "
            "AsyncEngine, or leave `async_rollouts` out."
        )
    return engine


def weights_changed(engine: Any) -> None:
    """Tell an engine that the weights of the policy may have changed, if it wants to know."""
    getattr(engine, "weights_changed", _nothing)()


def close(engine: Any) -> None:
    """Close an engine that has something to close."""
    getattr(engine, "close", _nothing)()


def _nothing() -> None:
    """Stand in for a method that an engine lacks."""


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token that ends a completion: the tokenizer's EOS and all that the model declares."""
    declared = model.generation_config.eos_token_id
    ids = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.insert(0, tokenizer.eos_token_id)
    return ids


@contextmanager
def own_generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Replace the model's generation configuration, from which `generate` takes whatever `config` leaves at None."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before
