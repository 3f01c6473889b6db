# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A vLLM server (`vllm serve`) that samples; weights reach it as files, so that it needs no GPU link to the trainer."""

import json
import secrets
import tempfile
import threading
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from trl_ext.rewards.service import LARGEST_REPLY, NO_REPLY, Service, failure_kind

from .protocol import Completions
from .vllm_weights import save_adapter, save_base

API_KEY_ENV = "VLLM_API_KEY"
_AT_ONCE = 64  # requests; the server makes its batches of them
_TOKEN_BYTES = 512  # of a token in a reply, with its text and log-probability
# How the server must have been started, by the path that it otherwise refuses.
_NEEDED = {
    "/v1/load_lora_adapter": "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and a sufficient --max-lora-rank",
    "/collective_rpc": "VLLM_SERVER_DEV_MODE=1",
    "/reset_prefix_cache": "VLLM_SERVER_DEV_MODE=1",
    "/v1/completions": "--logprobs-mode processed_logprobs, and a sufficient --max-model-len",
}


class Server:
    """A vLLM server, which reads the policy's weights from a temporary folder that both see.

    Args:
        url: Address of the server.
        sampling: Fields of a request for a completion.
        timeout: Seconds for a rollout, or for new weights.
        with_adapter: Whether the policy is an adapter on the model that the server was started with; it is then sent
            alone.
    """

    def __init__(self, url: str, sampling: dict[str, Any], *, timeout: float, with_adapter: bool):
        self.url, self.sampling, self.timeout, self.with_adapter = url, sampling, timeout, with_adapter
        self.updates = 0
        self.run = secrets.token_hex(4)  # the server refuses a name that it has, such as that of a killed run's adapter
        self.stopped = threading.Event()  # of the rollout that is being sampled

    @property
    def model(self) -> dict[str, str]:
        """The policy's name in a request: that of its newest adapter, or nothing for the model itself."""
        return {"model": self._name(self.updates)} if self.with_adapter else {}

    def _name(self, update: int) -> str:
        return f"policy-{self.run}-{update}"

    def update(self, model: PreTrainedModel) -> None:
        """Have the server read the weights of the model: those of its active adapter alone, if it has one.

        Raises:
            ConnectionError: when the server does not answer.
            ValueError: when it refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "policy"
            if not self.with_adapter:
                save_base(model, path)
                self._send("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
                self._send("/reset_prefix_cache", {})
                return
            save_adapter(model, path)
            old, self.updates = self.updates, self.updates + 1
            self._send("/v1/load_lora_adapter", {"lora_name": self._name(self.updates), "lora_path": str(path)})
            if old:
                self._send("/v1/unload_lora_adapter", {"lora_name": self._name(old)})

    def sample(self, prompt_ids: list[list[int]], seeds: list[int], on_progress: Callable[..., Any]) -> Completions:
        """Sample one completion per prompt; see `VLLMEngine`.

        Raises:
            ConnectionError: when the server does not answer.
            ValueError: when it refuses.
            RuntimeError: when it drops a completion.
        """
        stopped = self.stopped = threading.Event()

        def ask(ids: list[int], seed: int) -> dict[str, Any]:
            body = self.sampling | self.model | {"prompt": ids, "seed": seed, "return_token_ids": True}
            return json.loads(self._send("/v1/completions", body, stopped))["choices"][0]

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = [pool.submit(ask, ids, seed) for ids, seed in zip(prompt_ids, seeds, strict=True)]
            try:
                for answer in as_completed(asked):
                    on_progress(1, len(answer.result()["token_ids"]))
            except BaseException:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        choices = [answer.result() for answer in asked]
        if lost := [c["finish_reason"] for c in choices if c["finish_reason"] not in ("stop", "length")]:
            raise RuntimeError(f"The vLLM server dropped {len(lost)} of {len(choices)} completions ({lost[0]}).")
        logps = None
        if self.sampling["logprobs"] is not None:
            logps = [choice["logprobs"]["token_logprobs"] for choice in choices]
        return Completions([c["token_ids"] for c in choices], [c["finish_reason"] == "stop" for c in choices], logps)

    def close(self) -> None:
        """Wait for no more answers; the server goes on, with the policy of the last rollout."""
        self.stopped.set()

    def _send(self, path: str, body: dict[str, Any], stopped: threading.Event | None = None) -> bytes:
        service = vllm_service(self.url, path)
        largest = LARGEST_REPLY + _TOKEN_BYTES * self.sampling["max_tokens"]
        try:
            return service.send(json.dumps(body).encode(), self.timeout, largest, stopped)
        except urllib.error.HTTPError as error:
            error.close()
            raise ValueError(
                f"The vLLM server refuses {service.url}{path} with HTTP {error.code}; it must have been started with "
                f"{_NEEDED.get(path, 'the same model')}."
            ) from None
        except NO_REPLY as error:
            raise ConnectionError(
                f"The vLLM server does not answer at {service.url}{path} ({failure_kind(error)}); start it again, or "
                f"raise `vllm_server_timeout` {self.timeout:g}."
            ) from None


def vllm_service(url: str, path: str = "") -> Service:
    """Return the service at one path of a vLLM server.

    Raises:
        ValueError: `url` is no HTTP URL.
    """
    return Service(url, path, api_key_env=API_KEY_ENV, owner="`vllm_server_base_url`")
