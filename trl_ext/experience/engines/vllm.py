# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Sampling with vLLM, in this process or by a server."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .protocol import AsyncEngine, Completions
from .vllm_colocated import Colocated
from .vllm_server import Server, vllm_service
from .vllm_weights import largest_rank, quantization


class Backend(Protocol):
    """A vLLM that holds a copy of the policy."""

    def update(self, model: PreTrainedModel) -> None:
        """Give vLLM the weights of the model: those of its active adapter alone, if it has one."""

    def sample(self, prompt_ids: list[list[int]], seeds: list[int], on_progress: Callable[..., Any]) -> Completions:
        """Sample one completion per prompt, each with a seed of its own."""
        ...

    def close(self) -> None:
        """Give back memory and files."""


class VLLMEngine(AsyncEngine):
    """Sampling with vLLM, which holds a copy of the policy.

    The copy is brought up to date at the first call after `weights_changed`: of a policy with LoRA by the adapter
    alone, otherwise by all weights. Log-probabilities are those of the distribution sampled from. Every completion has
    a seed of its own, drawn from torch's generator, so that a resumed run samples what the killed one would have.

    Args:
        tokenizer: Tokenizer of the model.
        model: The policy, which is checked here, and read at every update.
        eos_token_ids, max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop_strings, return_logps:
            As in [`TransformersEngine`].
        mode: "colocate": vLLM runs in this process, on the policy's device. "server": an own process runs it.
        gpu_memory_utilization: Share of the GPU that a colocated vLLM takes.
        max_model_length: Most tokens of prompt and completion; None: the model's context.
        enable_sleep_mode: Whether a colocated vLLM gives the GPU's memory back between rollouts.
        server_base_url, server_host, server_port: Address of the server; the URL, if given, is it.
        server_timeout: Seconds that the server may take for a rollout, or for new weights.

    Raises:
        ValueError: for an adapter or a quantization that vLLM cannot apply.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model: PreTrainedModel,
        eos_token_ids: list[int],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop_strings: list[str] | None = None,
        return_logps: bool = True,
        mode: str = "colocate",
        gpu_memory_utilization: float = 0.3,
        max_model_length: int | None = None,
        enable_sleep_mode: bool = False,
        server_base_url: str | None = None,
        server_host: str = "0.0.0.0",
        server_port: int = 8000,
        server_timeout: float = 240.0,
    ):
        rank = largest_rank(model)
        sampling: dict[str, Any] = {
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p or 0.0,
            "repetition_penalty": repetition_penalty,
            "stop": stop_strings,
            "stop_token_ids": eos_token_ids,
            "skip_special_tokens": False,  # a text that ends a completion may hold one
            "logprobs": 0 if return_logps else None,  # of the sampled token, and of 0 others
        }
        self.stale = True
        self.backend: Backend
        if mode == "server":
            url = server_url(server_base_url, server_host, server_port)
            self.backend = Server(url, sampling, timeout=server_timeout, with_adapter=rank is not None)
        else:
            self.backend = Colocated(
                tokenizer,
                sampling,
                max_lora_rank=rank,
                quantization=quantization(model),
                gpu_memory_utilization=gpu_memory_utilization,
                max_model_len=max_model_length,
                sleeps=enable_sleep_mode,
            )

    def __call__(
        self, model: PreTrainedModel, prompt_ids: list[list[int]], on_progress: Callable[..., Any] | None = None
    ) -> Completions:
        """Sample one completion per prompt; see [`GenerationEngine`]."""
        return self.prepare(model, prompt_ids)(on_progress or (lambda completions, tokens: None))

    def prepare(
        self, model: PreTrainedModel, prompt_ids: list[list[int]]
    ) -> Callable[[Callable[..., Any]], Completions]:
        """Bring vLLM's copy of the weights up to date, and draw the seeds; see [`AsyncEngine`]."""
        if self.stale:
            self.backend.update(model)
            self.stale = False
        seeds = torch.randint(2**31, (len(prompt_ids),)).tolist()
        return partial(self.backend.sample, prompt_ids, seeds)

    def weights_changed(self) -> None:
        """Have the next call bring vLLM's copy of the weights up to date."""
        self.stale = True

    def close(self) -> None:
        """Give back memory and files; the next call starts vLLM again."""
        self.stale = True
        self.backend.close()


def server_url(base_url: str | None, host: str, port: int) -> str:
    """Return the address of the vLLM server."""
    return base_url or f"http://{host}:{port}"


def check_vllm(mode: str, url: str) -> None:
    """Refuse a colocated vLLM where it is not installed, and a server that does not answer.

    Raises:
        ImportError: with the command that installs vLLM.
        ValueError: with the address of the server.
    """
    if mode == "server":
        vllm_service(url).check()
    elif importlib.util.find_spec("vllm") is None:
        raise ImportError("`use_vllm` needs vLLM, which is not installed; run `pip install 'trl_ext[vllm]'`.")
