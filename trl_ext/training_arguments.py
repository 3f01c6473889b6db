# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""What PPO makes of the settings that `PPOConfig` inherits from `transformers.TrainingArguments`."""

from .fields import AT_LEAST_0, AT_LEAST_1, Limits

_POSITIVE = Limits(above=0)
_BETA = Limits(at_least=0, below=1)

# Ranges that transformers does not check, or answers without the name of the setting.
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
