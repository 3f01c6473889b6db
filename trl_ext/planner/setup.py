# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The settings of a run that decide how much memory it takes. Nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from trl_ext.checks.fields import Count, CountOrZero, Limits
from trl_ext.checks.options import CheckedOptions, option
from trl_ext.critic_modes import CRITIC_MODES

__all__ = ["Setup"]


@dataclass(frozen=True)
class Setup(CheckedOptions):
    """Everything besides the model that decides how much memory a run takes.

    Raises:
        TypeError: for a value of another type than its field's.
        ValueError: for a value out of range, or settings that exclude each other.
    """

    quantization: Literal["nf4", "int8", "none"] = option("nf4", "how the base is held; nf4 with double quantization")
    critic: Literal[*CRITIC_MODES] = option("head", "as in PPOConfig")  # type: ignore[valid-type]
    prompt: Count = option(512, "tokens of the longest prompt")
    completion: Count = option(512, "tokens of the longest completion")
    micro_batch: Count = option(1, "samples in a forward and backward pass (per_device_train_batch_size)")
    rank: CountOrZero = option(16, "rank of the policy's LoRA on every linear layer but the head; 0 trains all weights")
    critic_rank: Count | None = option(None, "rank of the critic's adapter; default: the policy's")
    num_critics: Annotated[int, Limits(at_least=1, at_most=2)] = option(1, "as in PPOConfig")
    reward_adapters: CountOrZero = option(0, "reward models that are adapters on the base, of the policy's rank")
    reference_adapter: bool = option(False, "training starts from an adapter, and a frozen clone is the reference")
    policy_ema: bool = option(False, "a moving average of the policy is kept (policy_ema_decay in PPOConfig)")
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = option(
        "k1", "as in PPOConfig; exact keeps the reference's hidden states of a rollout"
    )
    rollout: Count = option(64, "completions sampled per rollout")
    generation_batch: Count | None = option(
        None, "sequences sampled at a time; default: as many as take no more than learning does"
    )
    reward_batch: Count | None = option(
        None, "texts that a reward adapter scores at a time; default: as many as are sampled"
    )
    vllm_gpu_memory_utilization: Annotated[float, Limits(at_least=0, below=1)] = option(
        0.0, "share of the card that vLLM takes in the same process (use_vllm in PPOConfig); 0: without vLLM"
    )
    merge_adapters_while_sampling: bool = option(False, "as in PPOConfig")
    cache_implementation: Literal["static"] | None = option(None, "as in PPOConfig")
    optimizer: Literal[
        "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
        "sgd",
    ] = option("adamw_torch_fused", "called optim in PPOConfig")  # fmt: skip
    logits_chunk_size: Count = option(512, "as in PPOConfig")
    gradient_checkpointing: bool = option(True, "as in PPOConfig")
    every_n_layers: Count = option(1, "one of so many layers is checkpointed (gradient_checkpointing_kwargs)")
    dtype: Literal["bfloat16", "float32"] = option(
        "bfloat16", "dtype of the computation, and of frozen weights that are not quantized"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank == 0 and self.quantization != "none":
            raise ValueError(f"`rank` 0 trains the model itself, which {self.quantization} weights do not allow.")
        if self.rank == 0 and (self.critic == "adapter" or self.reward_adapters or self.reference_adapter):
            raise ValueError("`rank` 0 trains without adapters, so critic, reward and reference cannot be any.")
        if self.num_critics > 1 and self.critic != "adapter":
            raise ValueError(f"`num_critics` {self.num_critics} needs `critic` 'adapter'; leave it out otherwise.")
        if self.every_n_layers > 1 and not self.gradient_checkpointing:
            raise ValueError(f"`every_n_layers` {self.every_n_layers} needs `gradient_checkpointing`; leave it out.")
        if self.merge_adapters_while_sampling and (self.rank == 0 or self.quantization != "none"):
            raise ValueError(
                "`merge_adapters_while_sampling` needs adapters and a base that is not quantized; leave it out."
            )
        if self.rank > 0 and self.critic == "copy":
            raise ValueError(
                "`critic` 'copy' copies a whole model; with adapters use 'adapter' or 'head', or `rank` 0."
            )
