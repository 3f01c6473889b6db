# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Several reward models as LoRA adapters on one base, without a policy."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from trl_ext._compat import AdapterSwitch

from .loading import load_policy
from .reward_adapter import AdapterRewardModel, add_reward_adapter
from .trunk import disable_randomness


def load_reward_ensemble(
    base: str | PreTrainedModel,
    folders: Sequence[str | os.PathLike],
    *,
    quantization_config: BitsAndBytesConfig | None = None,
    device: str | torch.device | None = None,
    **init_kwargs: Any,
) -> list[AdapterRewardModel]:
    """Load one base with N LoRA reward adapters.

    ```python
    models = load_reward_ensemble("Qwen/Qwen2.5-0.5B", ["reward-0", "reward-1", "reward-2", "reward-3"])
    reward = Ensemble([PreferenceReward(model) for model in models], "min")
    ```

    Args:
        base: Name or folder of the causal LM that the adapters were trained on, or the loaded model, which gets the
            adapters and is frozen.
        folders: Adapters as TRL's `RewardTrainer` saves them with a `peft_config`.
        quantization_config: Quantization of a base given by name.
        device: Device of the base. By default a base given by name goes to the accelerator, if there is one, and a
            loaded one stays on its device.
        init_kwargs: Further arguments of `from_pretrained`, such as `dtype`.

    Returns:
        One frozen reward model per folder, in that order, for `PreferenceReward`.

    Raises:
        FileNotFoundError, ValueError: no adapter, or as `load_policy` and `add_reward_adapter` raise.
    """
    if not folders:
        raise ValueError("A reward ensemble needs at least one adapter; got no folder.")
    model = _load_base(base, quantization_config, device, init_kwargs)
    # PEFT wraps a model together with a first adapter, which is removed below.
    shell = get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"), "shell")
    added = [add_reward_adapter(shell, folder, f"reward{i}") for i, folder in enumerate(folders)]
    shell.set_adapter("reward0")
    shell.delete_adapter("shell")
    shell.requires_grad_(False).eval()
    disable_randomness(shell)
    switch = AdapterSwitch(shell)  # when every adapter is there
    return [AdapterRewardModel(model, switch, f"reward{i}", parts) for i, parts in enumerate(added)]


def _load_base(
    base: str | PreTrainedModel,
    quantization_config: BitsAndBytesConfig | None,
    device: str | torch.device | None,
    init_kwargs: dict[str, Any],
) -> PreTrainedModel:
    if not isinstance(base, str):
        if quantization_config is not None or init_kwargs:
            raise ValueError("`base` is a loaded model; quantization and loading options need a base by name.")
        return base if device is None else base.to(device)  # type: ignore[arg-type]
    if quantization_config is not None:
        # bitsandbytes finds the accelerator itself; a quantized model cannot always be moved later.
        placement: dict[str, Any] = {} if device is None else {"device_map": {"": device}}
        model = load_policy(base, quantization_config=quantization_config, **placement, **init_kwargs)
    else:
        model = load_policy(base, **init_kwargs)
        device = device or torch.accelerator.current_accelerator(check_available=True)
        model = model if device is None else model.to(device)  # type: ignore[arg-type]
    # Rewards are read from the hidden states; the unused head would be as large as the embeddings.
    model.set_output_embeddings(nn.Identity())
    return model
