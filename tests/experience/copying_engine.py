# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""An engine that samples from a copy of the weights, as a server does, and trainers that sample ahead with it."""

import copy
import threading
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests import scripted
from tests.tiny_models import EOS_ID
from trl_ext import PPOTrainer
from trl_ext.experience.engines import Completions

LENGTH = 8
SERVER = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:9"}


class CopyingEngine:
    """Samples completions of up to `LENGTH` tokens, with a seed for each.

    Attributes:
        sampled: Prompts of every call, and the weights that were sampled from.
        go: Sampling waits for this event.
        holds: Whether every call after the first clears `go`.
        failure: Number of a call, and the exception that its sampling raises.
        closed: How often it was closed.
    """

    def __init__(self) -> None:
        self.sampled: list[tuple[list[list[int]], dict[str, torch.Tensor]]] = []
        self.failure: tuple[int, Exception] | None = None
        self.go, self.holds, self.closed = threading.Event(), False, 0
        self.go.set()
        self._stale, self._model, self._is_busy = True, None, False

    def weights_changed(self) -> None:
        self._stale = True

    def close(self) -> None:
        self._stale = True
        self.closed += 1
        self.go.set()

    def __call__(self, model: Any, prompt_ids: list[list[int]], on_progress: Any = None) -> Completions:
        return self.prepare(model, prompt_ids)(on_progress or (lambda *numbers: None))

    def prepare(self, model: Any, prompt_ids: list[list[int]]) -> Any:
        assert not self._is_busy, "it is asked for another rollout while it samples one"
        if self._stale:
            self._model, self._stale = copy.deepcopy(model), False
        if self.holds and self.sampled:
            self.go.clear()
        self.sampled.append((prompt_ids, {n: p.detach().clone() for n, p in self._model.named_parameters()}))
        return partial(self.sample, prompt_ids, torch.randint(2**31, (len(prompt_ids),)).tolist())

    @torch.no_grad()
    def sample(self, prompt_ids: list[list[int]], seeds: list[int], on_progress: Any) -> Completions:
        self._is_busy = True
        try:
            self.go.wait()
            if self.failure is not None and self.failure[0] == len(self.sampled):
                raise self.failure[1]
            out = [self._complete(*asked, on_progress) for asked in zip(prompt_ids, seeds, strict=True)]
        finally:
            self._is_busy = False
        ids, logps = [list(part) for part in zip(*out, strict=True)]
        return Completions(ids, [row[-1] == EOS_ID for row in ids], logps)

    def _complete(self, prompt: list[int], seed: int, on_progress: Any) -> tuple[list[int], list[float]]:
        generator = torch.Generator().manual_seed(seed)
        ids, logps = list(prompt), []
        while len(logps) < LENGTH and (not logps or ids[-1] != EOS_ID):
            scores = torch.log_softmax(self._model(torch.tensor([ids])).logits[0, -1].float(), -1)  # type: ignore[misc]
            ids.append(int(torch.multinomial(scores.exp(), 1, generator=generator)))
            logps.append(float(scores[ids[-1]]))
        on_progress(1, len(logps))
        return ids[len(prompt) :], logps


def trainer(folder: Path | str, **settings: Any) -> PPOTrainer:
    """A run of four rollouts of two optimizer steps that samples ahead, unless `settings` say otherwise."""
    defaults = {"async_rollouts": True, "total_episodes": 32, **SERVER}
    with mock.patch("trl_ext.arguments.check_vllm"):  # there is no server
        made = scripted.trainer(folder, scripted=False, **{**defaults, **settings})
    made.generation_engine = CopyingEngine()  # type: ignore[assignment]
    return made
