# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Completions of a policy for evaluation, and how likely they are under the policy and its reference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.actor_critic import ActorCritic
from trl_ext.experience.engines import GenerationEngine, eos_token_ids
from trl_ext.experience.prompts import tokenize_prompts
from trl_ext.experience.rollout import collate
from trl_ext.text.decoding import decode_answers
from trl_ext.text.rows import Text
from trl_ext.text.tokens import encode


class Samples(NamedTuple):
    """One completion for each of N prompts; a prompt may occur several times.

    Attributes:
        prompts: Texts or conversations.
        prompt_ids: Token ids of each prompt.
        completions: Text of each completion, without special tokens.
        completion_ids: Token ids of each completion, with the token that ended it.
        terminated: Whether each completion ended by itself, and not at the length limit.
        lengths: Tokens of each completion; the EOS token that ended it does not count.
    """

    prompts: list[Text]
    prompt_ids: list[list[int]]
    completions: list[str]
    completion_ids: list[list[int]]
    terminated: list[bool]
    lengths: list[int]

    @property
    def empty(self) -> list[bool]:
        """One flag for each completion: True where it has no text, or white space alone."""
        return [not text.strip() for text in self.completions]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    engine: GenerationEngine,
    prompts: list[Text],
    *,
    seed: int,
    chat_template_kwargs: dict[str, Any] | None = None,
    rendered: bool = False,
    on_progress: Callable[..., Any] | None = None,
) -> Samples:
    """Sample one completion for each prompt.

    Args:
        model: Causal language model; it is put into eval mode for the call and back afterwards.
        tokenizer: Its tokenizer; pad and EOS may be the same token.
        engine: Samples from the model.
        prompts: N texts, or N conversations.
        seed: The same seed gives the same completions; the state of the global generators is left as it was.
        chat_template_kwargs: Further arguments of the chat template.
        rendered: Whether the prompts are texts that a chat template has written, special tokens and all.
        on_progress: Called as `on_progress(completions, tokens)`, see [`GenerationEngine`].
    """
    if rendered:
        prompt_ids = encode(prompts, tokenizer, rendered=True)  # type: ignore[arg-type]
    else:
        prompt_ids = tokenize_prompts(prompts, tokenizer, chat_template_kwargs)
    eos_ids = eos_token_ids(model, tokenizer)
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            out = engine(model, prompt_ids, on_progress)
    finally:
        model.train(was_training)
    said = [row[:-1] if row and row[-1] in eos_ids else row for row in out.ids]
    texts = decode_answers(tokenizer, prompts, prompt_ids, said, chat_template_kwargs)
    return Samples(prompts, prompt_ids, texts, out.ids, list(out.terminated), [len(row) for row in said])


def check_lengths(prompt_ids: list[list[int]], max_new_tokens: int, model: PreTrainedModel, option: str) -> None:
    """Refuse prompts without a token, or that leave no room for a completion in the model's context.

    Args:
        prompt_ids: Token ids of N prompts.
        max_new_tokens: Length limit of a completion.
        model: The model that is to continue them.
        option: Option that gives the limit, for the message.

    Raises:
        ValueError: naming the first such prompt.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for i, ids in enumerate(prompt_ids):
        if len(ids) == 0:
            raise ValueError(f"Prompt {i} has no token; give it a text.")
        if context is not None and len(ids) + max_new_tokens > context:
            raise ValueError(
                f"Prompt {i} has {len(ids)} tokens, and with {max_new_tokens} new ones exceeds the model's context of "
                f"{context}; shorten it or lower {option}."
            )


class Likelihoods(NamedTuple):
    """KL and log-likelihoods of N samples; float64, shape (N,) each.

    Attributes:
        kls: KL(policy || reference) at the sampling temperature, summed over the states of each sample, nats.
        ref_nlls: Negative log-likelihood under the reference at temperature 1, without the EOS token, nats.
    """

    kls: Tensor
    ref_nlls: Tensor

    @property
    def kl(self) -> float:
        """KL(policy || reference) in nats per completion, if the policy wrote the samples."""
        return float(self.kls.mean())


class Policy(NamedTuple):
    """A policy with its reference, and how training samples from it.

    Attributes:
        actor_critic: The policy and its reference.
        tokenizer: Their tokenizer.
        engine: Samples completions, for instance `trainer.generation_engine`.
        temperature: Sampling temperature.
        batch_size: Samples in a forward pass.
        chunk_size: Tokens whose logits are computed at a time; None for all of them.
        chat_template_kwargs: Further arguments of the chat template.
    """

    actor_critic: ActorCritic
    tokenizer: PreTrainedTokenizerBase
    engine: GenerationEngine
    temperature: float = 1.0
    batch_size: int = 64
    chunk_size: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def sample(self, prompts: list[Text], seed: int, on_progress: Callable[..., Any] | None = None) -> Samples:
        """Sample one completion for each prompt, as `sample` does."""
        with self.actor_critic.hold():
            return sample(
                self.actor_critic.causal_lm,
                self.tokenizer,
                self.engine,
                prompts,
                seed=seed,
                chat_template_kwargs=self.chat_template_kwargs,
                on_progress=on_progress,
            )

    def likelihoods(self, samples: Samples) -> Likelihoods:
        """Return how likely `samples` are under the policy as it is now and under the reference."""
        was_training = self.actor_critic.training
        self.actor_critic.eval()
        starts = range(0, len(samples.prompts), self.batch_size)
        parts = [self._likelihoods(samples, slice(start, start + self.batch_size)) for start in starts]
        self.actor_critic.train(was_training)
        return Likelihoods(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def _likelihoods(self, samples: Samples, rows: slice) -> Likelihoods:
        device = self.actor_critic.device
        batch = collate(
            samples.prompt_ids[rows],
            samples.completion_ids[rows],
            samples.terminated[rows],
            pad_token_id=self.tokenizer.pad_token_id,
            device=device,
        )
        tokens = (batch.input_ids, batch.attention_mask, batch.completion_mask)
        chunk, temperature = self.chunk_size, self.temperature
        out = self.actor_critic(*tokens, temperature=temperature, chunk_size=chunk, role="with_reference")
        assert out.kl is not None
        kls, ref_logps = out.kl.double().sum(-1), out.ref_logps
        if temperature != 1.0:
            ref_logps = self.actor_critic(*tokens, chunk_size=chunk, role="reference").logps
        lengths = torch.tensor(samples.lengths[rows], device=device)
        said = (torch.arange(batch.completion_length, device=device) < lengths[:, None]).double()
        return Likelihoods(kls.cpu(), -(ref_logps * said).sum(-1).cpu())
