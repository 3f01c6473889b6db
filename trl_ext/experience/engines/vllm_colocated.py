# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""vLLM in the process of the trainer, on the device of the policy."""

import gc
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext._compat import keep_vllm_weights_plain
from trl_ext.messages.printable import one_line

from .protocol import Completions
from .vllm_weights import compute_dtype, named_weights, save_adapter, save_base

# In one process the weights are handed over in memory. The other two concern CPUs: vLLM would bind this process's
# threads to cores, and take a share of the memory of the machine for its cache; GiB.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_ENVIRONMENT |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


class Colocated:
    """vLLM in this process; it starts with the first update, from the policy's weights in a temporary folder.

    Args:
        tokenizer: Tokenizer of the policy, for texts that end a completion.
        sampling: Arguments of vLLM's `SamplingParams`.
        max_lora_rank: Rank that adapters may have; None for a policy without.
        quantization: How vLLM quantizes the base, which it then loads by its name and not from the policy's weights.
        gpu_memory_utilization, max_model_len: As in vLLM.
        sleeps: Whether vLLM gives the GPU's memory back between rollouts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sampling: dict[str, Any],
        *,
        max_lora_rank: int | None,
        quantization: str | None,
        gpu_memory_utilization: float,
        max_model_len: int | None,
        sleeps: bool,
    ):
        self.tokenizer, self.sampling, self.max_lora_rank, self.sleeps = tokenizer, sampling, max_lora_rank, sleeps
        self.quantization = quantization
        self.limits = {"gpu_memory_utilization": gpu_memory_utilization, "max_model_len": max_model_len}
        self.llm: Any = None
        self.adapter: Any = None  # vLLM's request for the policy's adapter
        self.updates, self.made_group = 0, False

    def update(self, model: PreTrainedModel) -> None:
        """Start vLLM, or give it the weights of the model: those of its active adapter alone, if it has one.

        Raises:
            ValueError: when vLLM does not start, or cannot apply the adapter.
            RuntimeError: when vLLM has packed weights that could not be updated.
        """
        dtype, fresh = compute_dtype(model), self.llm is None
        with _apart(), tempfile.TemporaryDirectory() as folder:
            if fresh:
                self._start(model, Path(folder), dtype)
            self._wake()
            if self.max_lora_rank is not None:
                self._load_adapter(model, Path(folder) / "adapter")
            elif not fresh:
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named_weights(model)})
            self.llm.reset_prefix_cache()  # keys and values of the old weights

    def _start(self, model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        on_cpu = model.device.type == "cpu"
        if on_cpu:
            keep_vllm_weights_plain()
        source = model.config.name_or_path if self.quantization else str(folder)
        if not self.quantization:
            save_base(model, folder)
        self.tokenizer.save_pretrained(folder)
        self.made_group = not torch.distributed.is_initialized()
        set_num_threads = torch.set_num_threads  # which vLLM replaces on a CPU
        options = {} if self.max_lora_rank is None else {"enable_lora": True, "max_lora_rank": self.max_lora_rank}
        try:
            self.llm = LLM(
                source,
                tokenizer=str(folder),
                quantization=self.quantization,
                dtype=str(dtype).removeprefix("torch."),
                skip_tokenizer_init=not self.sampling["stop"],
                generation_config="vllm",  # nothing of the model's own
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
                enforce_eager=on_cpu,
                use_tqdm_on_load=False,
                enable_sleep_mode=self.sleeps,
                max_num_batched_tokens=4096,
                **self.limits,
                **options,
            )
        except Exception as error:
            raise ValueError(
                f"vLLM does not start with this {type(model).__name__} ({one_line(error, 200)}); see its settings "
                "`vllm_...`, or leave `use_vllm` out."
            ) from error
        finally:
            torch.set_num_threads = set_num_threads
        if packed := self.llm.apply_model(_empty_parameters)[0]:
            raise RuntimeError(
                f"vLLM has packed {len(packed)} of its weights ({packed[0]}), which updates would not reach; sample "
                "with `generate`, or with another version of vLLM."
            )

    def _wake(self) -> None:
        if self.sleeps and self.llm.llm_engine.is_sleeping():
            self.llm.wake_up()

    def _load_adapter(self, model: PreTrainedModel, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        save_adapter(model, folder)
        self.updates += 1  # under an id that vLLM knows it would keep the old weights
        self.adapter = LoRARequest(f"policy-{self.updates}", self.updates, str(folder))
        try:
            self.llm.llm_engine.add_lora(self.adapter)
        except Exception as error:
            raise ValueError(
                f"vLLM cannot apply the policy's adapter ({one_line(error, 200)}); leave `use_vllm` out, or train "
                "other layers (`target_modules` of the LoRA configuration)."
            ) from error

    def sample(self, prompt_ids: list[list[int]], seeds: list[int], on_progress: Callable[..., Any]) -> Completions:
        """Sample one completion per prompt; see `VLLMEngine`.

        Raises:
            ValueError: when a prompt leaves no room for a completion.
            RuntimeError: when vLLM drops a completion.
        """
        from vllm import SamplingParams

        needed = max(map(len, prompt_ids)) + self.sampling["max_tokens"]
        if needed > (most := self.llm.model_config.max_model_len):
            raise ValueError(
                f"A prompt and its completion may have {needed} tokens and vLLM takes {most}; raise "
                "`vllm_max_model_length`, or lower `max_completion_length`."
            )
        options = self.sampling | {"detokenize": bool(self.sampling["stop"])}
        try:
            with _apart():
                self._wake()
                self.llm.enqueue(
                    [{"prompt_token_ids": ids} for ids in prompt_ids],
                    [SamplingParams(seed=seed, **options) for seed in seeds],
                    lora_request=self.adapter,
                    use_tqdm=False,
                )
                outputs = self.llm.wait_for_completion(use_tqdm=lambda **options: _Progress(on_progress))
                if self.sleeps:
                    self.llm.sleep(level=1)
        except BaseException:
            self.close()  # what is left of the rollout would be among the completions of the next
            raise
        results = [output.outputs[0] for output in outputs]
        on_progress(0, sum(len(r.token_ids) for r in results))
        if lost := [r.finish_reason for r in results if r.finish_reason not in ("stop", "length")]:
            raise RuntimeError(f"vLLM dropped {len(lost)} of {len(results)} completions ({lost[0]}).")
        ids = [list(r.token_ids) for r in results]
        logps = None
        if self.sampling["logprobs"] is not None:
            logps = [[at[i].logprob for i, at in zip(r.token_ids, r.logprobs, strict=True)] for r in results]
        return Completions(ids, [r.finish_reason == "stop" for r in results], logps)

    def close(self) -> None:
        """Give back the memory; the next update starts vLLM again."""
        if self.llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory, destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        self.llm = self.adapter = None
        gc.collect()
        # The process group of a launcher is not vLLM's to end.
        (cleanup_dist_env_and_memory if self.made_group else destroy_model_parallel)()


def _empty_parameters(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not parameter.numel()]


class _Progress:
    """Stands in for the bar that vLLM shows its progress on, and reports finished completions."""

    def __init__(self, on_progress: Callable[..., Any]):
        self.on_progress, self.n, self.postfix = on_progress, 0, ""
        self.format_dict = {"elapsed": 1.0}

    def update(self, n: int) -> None:
        """Report that `n` more completions are finished."""
        self.n += n
        self.on_progress(n, 0)

    def refresh(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def _apart() -> Iterator[None]:
    """Run vLLM in a block, out of the reach of this thread's autocast, and leave all random numbers as they were.

    vLLM seeds every generator as it starts, which it does at another time in a resumed run.
    """
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])
