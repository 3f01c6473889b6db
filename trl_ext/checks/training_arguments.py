# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Checks of the settings that `PPOConfig` inherits from `transformers.TrainingArguments`.

A setting in neither table below works as in transformers.
"""

import dataclasses
import os
import warnings
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.training_args import ParallelMode

from trl_ext.messages.suggestion import suggestion

from .deepspeed import check_deepspeed, check_deepspeed_starts
from .fields import AT_LEAST_0, AT_LEAST_1, Limits

_POSITIVE = Limits(above=0)
_BETA = Limits(at_least=0, below=1)

# Ranges that transformers does not check, or refuses without naming the setting.
INHERITED_LIMITS = {
    "learning_rate": AT_LEAST_0,
    "weight_decay": AT_LEAST_0,
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": AT_LEAST_0,
    "warmup_steps": AT_LEAST_0,
    "num_train_epochs": _POSITIVE,
    "per_device_train_batch_size": AT_LEAST_1,
    "per_device_eval_batch_size": AT_LEAST_1,
    "gradient_accumulation_steps": AT_LEAST_1,
    "max_steps": Limits(at_least=-1),
    "logging_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "eval_delay": AT_LEAST_0,
    "save_total_limit": AT_LEAST_1,
    "torch_empty_cache_steps": AT_LEAST_1,
    "dataloader_num_workers": AT_LEAST_0,
    "dataloader_prefetch_factor": AT_LEAST_1,
    "ddp_timeout": AT_LEAST_1,
    "ddp_bucket_cap_mb": AT_LEAST_1,
    # NumPy's generators take no other seeds.
    "seed": Limits(at_least=0, at_most=2**32 - 1),
    "data_seed": Limits(at_least=0, at_most=2**32 - 1),
}

# Accepted values, and the reason why all others are refused.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "neftune_noise_alpha": (
        (None,),
        "noise in the embeddings makes old and new log-probabilities differ; leave it out",
    ),
    "auto_find_batch_size": (
        (False,),
        "it would change the size of the rollouts; leave it out, micro-batches shrink by themselves where memory runs "
        "out",
    ),
    "ddp_static_graph": ((None, False), "a skipped minibatch has another graph than the one before; leave it out"),
    "ignore_data_skip": ((False,), "a resumed run goes on in the middle of a rollout; leave it out"),
    "parallelism_config": (
        (None,),
        "only data parallelism is supported; leave it out and start with `accelerate launch` or `torchrun`",
    ),
    "include_num_input_tokens_seen": (
        ("no", False),
        "tokens are sampled, not read from the data set; leave it out, `tokens_per_second` is logged",
    ),
    "include_for_metrics": (
        ([], None),
        "`compute_metrics` of PPOTrainer is a function of completions and their columns; leave it out",
    ),
    "train_sampling_strategy": (
        ("random",),
        "a rollout is a batch of prompts in random order; leave it out, `shuffle_dataset=False` keeps the order of the "
        "data set",
    ),
    "dataloader_in_order": ((True,), "batches out of order would mix rollouts; leave it out"),
}
_WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "label_smoothing_factor": (0.0, "PPO's loss has no labels"),
    "label_names": (None, "PPO's loss has no labels"),
    "average_tokens_across_devices": (True, "losses are always means over the tokens of all processes"),
    "eval_accumulation_steps": (None, "an evaluation keeps no predictions"),
    "batch_eval_metrics": (False, "an evaluation keeps no predictions"),
    "eval_use_gather_object": (False, "an evaluation keeps no predictions"),
    "eval_do_concat_batches": (True, "an evaluation keeps no predictions"),
    "length_column_name": ("length", "prompts are not grouped by length"),
}
# Settings of `accelerator_config` that are refused, with the reason.
_DATA_LOADING: dict[str, tuple[tuple[Any, ...], str]] = {
    "split_batches": ((False,), "every process samples `per_device_train_batch_size * gradient_accumulation_steps`"),
    "dispatch_batches": ((None, False), "every process reads its own prompts"),
    "even_batches": ((True,), "a process with fewer batches to evaluate would leave the others waiting"),
}
# Devices on which accelerate shards.
FSDP_DEVICES: tuple[str, ...] = ("cuda", "xpu", "npu", "hpu", "mlu", "musa", "sdaa")
_OFF = ("", "false", "0", "no")
# Settings of FSDP that are refused, with the reason.
_FSDP_ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "version": (("", "2"), "FSDP1 flattens parameters, from which PPO cannot tell the critic's; set 2"),
    "auto_wrap_policy": (
        ("", "transformer_based_wrap"),
        "only layers of the model are sharded one by one; set TRANSFORMER_BASED_WRAP",
    ),
    "cpu_ram_efficient_loading": (
        _OFF,
        "all processes check the model that they load, and this leaves it empty in all but one; set false",
    ),
    "activation_checkpointing": (
        _OFF,
        "it would recompute under the adapter that is active then; set `gradient_checkpointing` of PPOConfig instead",
    ),
    "cpu_offload": (_OFF, "PPO reads gradients and weights on the GPU; set false"),
    "offload_params": (_OFF, "PPO reads gradients and weights on the GPU; set false"),
}


def has_bf16(*, use_cpu: bool) -> bool:
    """Return whether the device of a run computes in bfloat16 itself; CPUs and older GPUs emulate it."""
    on_gpu = torch.cuda.is_available() and not use_cpu
    return on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)


def check_engine(args: TrainingArguments) -> None:
    """Refuse engines and devices that cannot train, before transformers sets them up.

    Raises:
        ValueError: naming the setting and the way out.
    """
    switches = {name: _is_on(f"ACCELERATE_USE_{name}") for name in ("DEEPSPEED", "MEGATRON_LM")}
    if args.deepspeed or switches["DEEPSPEED"]:
        check_deepspeed_starts(args)
    if switches["MEGATRON_LM"]:
        raise ValueError("The launcher asks for Megatron-LM, which is not supported; start with `torchrun`.")
    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    if args.fp16 and on_cpu:
        raise ValueError("`fp16` needs a GPU; leave it out, on a CPU training runs in float32.")
    if args.bf16 and on_cpu and not args.use_cpu:
        raise ValueError("`bf16` is set and no GPU is visible; leave it out, or add `use_cpu` for bfloat16 on the CPU.")
    if args.ddp_backend == "nccl" and args.use_cpu:
        raise ValueError("`ddp_backend='nccl'` needs GPUs; leave it out with `use_cpu`.")
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"):
        if getattr(args, name, None) and args.dataloader_num_workers == 0:
            raise ValueError(f"`{name}` needs `dataloader_num_workers` above 0; leave it out otherwise.")
    for name in ("accelerator_config", "fsdp_config"):
        if isinstance(path := getattr(args, name), str) and not path.startswith("{") and not os.path.isfile(path):
            raise ValueError(f"`{name}` {path!r} is no file; give a mapping, its JSON, or the path of a JSON file.")
    if isinstance(args.accelerator_config, dict):
        known = [field.name for field in dataclasses.fields(AcceleratorConfig)]
        for key in args.accelerator_config:
            if key not in known:
                help = suggestion(str(key), known) or f"known are {', '.join(known)}."
                raise ValueError(f"`accelerator_config` has no `{key}`: {help}")


def choose_best_metric(args: Any) -> None:
    """Let the best model be the one with the highest `eval_reward` where no metric is named.

    Raises:
        ValueError: when evaluations and checkpoints do not go together.
    """
    if args.load_best_model_at_end and args.save_strategy not in ("best", args.eval_strategy):
        evaluation, saving = (getattr(value, "value", value) for value in (args.eval_strategy, args.save_strategy))
        raise ValueError(
            f"`load_best_model_at_end` needs `eval_strategy` and `save_strategy` to be the same, got '{evaluation}' "
            f"and '{saving}'."
        )
    if args.load_best_model_at_end or args.save_strategy == "best":
        args.metric_for_best_model = args.metric_for_best_model or "eval_reward"
        if args.greater_is_better is None and args.metric_for_best_model.endswith("kl"):
            args.greater_is_better = False  # transformers prefers the smaller value for losses alone


def check_supported(args: TrainingArguments) -> None:
    """Refuse the settings that PPO cannot follow; `args` has been through transformers' own checks.

    Raises:
        ValueError: with the name of the setting and what to do instead.
    """
    for name, (accepted, reason) in _ONLY.items():
        value = getattr(args, name, accepted[0])
        if value not in accepted:
            raise ValueError(f"`{name}` is {value!r}, which is not supported: {reason}.")
    config: Any = args.accelerator_config
    for name, (accepted, reason) in _DATA_LOADING.items():
        if (value := getattr(config, name)) not in accepted:
            raise ValueError(f"`accelerator_config` sets `{name}={value}`, which is not supported: {reason}.")
    # The Trainer writes 1 into this mapping.
    steps = (config.gradient_accumulation_kwargs or {}).get("num_steps", 1)
    if steps != 1:
        raise ValueError(
            f"`accelerator_config` sets `num_steps={steps}`; use `gradient_accumulation_steps`, which sizes a rollout."
        )
    if any("layerwise" in args.optim or args.optim == name for name in ("lomo", "adalomo")):
        raise ValueError(
            f"`optim='{args.optim.value}'` takes its steps inside the backward pass, before PPO can drop one; use "
            "another, for instance 'adamw_torch' or 'paged_adamw_8bit'."
        )
    _check_fsdp(args)
    check_deepspeed(args)


def warn_ignored(args: TrainingArguments) -> None:
    """Warn of inherited settings that change nothing."""
    for name, (default, reason) in _WITHOUT_EFFECT.items():
        if getattr(args, name, default) != default:
            warnings.warn(f"`{name}` has no effect: {reason}.", stacklevel=6)


def checkpointing_kwargs(args: TrainingArguments) -> dict[str, Any]:
    """Return the options of activation checkpointing; transformers before 5.20 has the second name alone."""
    names = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
    return next((dict(given) for name in names if (given := getattr(args, name, None))), {})


def mapping(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return a field of the configuration that may be given as JSON, which `TrainingArguments` has parsed by now."""
    assert not isinstance(value, str)
    return dict(value or {})


def asks_for_fsdp(args: TrainingArguments) -> bool:
    """Return whether the settings or the launcher ask for FSDP."""
    return bool(args.fsdp) or _is_on("ACCELERATE_USE_FSDP")


def _check_fsdp(args: TrainingArguments) -> None:
    """Refuse FSDP where it cannot work, before anything is loaded.

    Raises:
        ValueError: naming the setting of `fsdp_config`, or of the launcher's configuration, and the way out.
    """
    if not asks_for_fsdp(args):
        return
    if args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ValueError("FSDP needs several processes; start with `accelerate launch` or `torchrun`.")
    if args.device.type not in FSDP_DEVICES:
        raise ValueError(
            "FSDP needs GPUs: with `use_cpu`, or where no GPU is visible, accelerate would not shard the model; leave "
            "FSDP out."
        )
    for name, (accepted, reason) in _FSDP_ONLY.items():
        if (value := _fsdp_setting(args, name)) not in accepted:
            where = f"`fsdp_config` sets `{name}={value}`" if args.fsdp else f"The launcher sets `fsdp_{name}: {value}`"
            raise ValueError(f"{where}, which is not supported: {reason}.")
    for name in ("fp16", "fp16_full_eval", "bf16_full_eval"):
        if getattr(args, name):
            raise ValueError(f"`{name}` is not supported with FSDP; use `bf16` or float32.")


def _fsdp_setting(args: TrainingArguments, name: str) -> str:
    """Return a setting of FSDP in lower case, or ""; the launcher leaves its own in the environment."""
    config: Any = args.fsdp_config or {}
    missing = "1" if name == "version" else ""  # accelerate's own choice
    value = config.get(name, "") if args.fsdp else os.environ.get(f"FSDP_{name.upper()}", missing)
    return str(value).lower()


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes", "on", "y", "t")
