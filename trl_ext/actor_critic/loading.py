# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Policies and critics by name or object, with common mistakes refused in one sentence."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from trl_ext.critic_modes import CRITIC_MODES
from trl_ext.messages.printable import first_line
from trl_ext.sharding import is_partitioned, load_state

from .adapters import load_adapter
from .names import check_quantization_library, find_critic, find_policy, hub_options
from .precision import with_dtype
from .saved_critic import check_saved_critic, find_saved_critic
from .trunk import causal_lm, check_trunk, text_trunk
from .value_head import ValueHead

_HEADS = ("score", "classifier")
_SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")  # strategies of `device_map` over all devices
_SEVERAL_DEVICES = (
    "`device_map` puts `model` on several devices ({}), and PPO trains on one; leave it out, quantize the model "
    "(`quantization_config`), or start one process per device with `accelerate launch`."
)
QUANTIZED = "A quantized model cannot be trained itself, only LoRA adapters on it: give `peft_config`."


def has_adapter(model: Any, init_kwargs: dict[str, Any]) -> bool:
    """Return whether a policy, by name or object, is an adapter on a base; raises what `find_policy` raises."""
    if isinstance(model, str):
        return find_policy(model, init_kwargs).adapter is not None
    return isinstance(model, PeftModel)


def policy_config(model: Any, init_kwargs: dict[str, Any]) -> PretrainedConfig | None:
    """Return the configuration of a policy, by name or object, before it is loaded; None for something else."""
    if isinstance(model, str):
        return find_policy(model, init_kwargs).config
    return causal_lm(model).config if isinstance(model, (PreTrainedModel, PeftModel)) else None


def check_roles(
    critic: Any,
    reward_adapters: Sequence[Any],
    policy: PretrainedConfig | None,
    *,
    with_adapters: bool,
    init_kwargs: dict[str, Any],
) -> None:
    """Check that policy, critic and reward adapters fit together, before any of them is loaded.

    Args:
        critic, reward_adapters, init_kwargs: As in `ActorCritic`.
        policy: Configuration of the policy.
        with_adapters: Whether the policy is, or will be, an adapter on a frozen base.

    Raises:
        FileNotFoundError: when a file of a saved critic is missing.
        ValueError: when critic or reward adapters need another kind of policy, a saved critic has another base, or
            there is no critic of that name.
    """
    if isinstance(critic, str):
        mode = CRITIC_MODES.get(critic)
        saved = find_saved_critic(critic)
        if saved is not None:
            check_saved_critic(saved, policy, with_adapters=with_adapters)
        elif mode is None:
            find_critic(critic, critic_options(init_kwargs))
        elif mode.lora not in (None, with_adapters):
            raise ValueError(mode.refusal)
    if reward_adapters and not with_adapters:
        raise ValueError("`reward_adapters` read the frozen base of a policy with LoRA: they need `peft_config`.")


def critic_options(init_kwargs: dict[str, Any], *, with_adapters: bool = False) -> dict[str, Any]:
    """Return the keyword arguments of `from_pretrained` that apply to a critic by name as well as to the policy."""
    of_policy = {"quantization_config", "revision", "code_revision", "subfolder", "key_mapping"}
    if with_adapters:  # the dtype is that of the frozen base
        of_policy |= {"dtype", "torch_dtype"}
    return {key: value for key, value in init_kwargs.items() if key not in of_policy}


def load_policy(
    model: str | nn.Module,
    *,
    trained: bool = False,
    device: torch.device | None = None,
    base_model: str | None = None,
    **init_kwargs: Any,
) -> PreTrainedModel | PeftModel:
    """Load the policy: a causal LM, or a LoRA adapter on one, by name, folder or object.

    Args:
        model: Name or folder of a causal LM or of a LoRA adapter, or the loaded model, with or without PEFT adapters.
        trained: Whether the model's own weights are to be trained. A model by name is then loaded in float32, and
            otherwise in the checkpoint's dtype.
        device: Device for a model by name, unless `device_map` or its quantization decides.
        base_model: Name or folder of the base of an adapter by name, where it has moved.
        init_kwargs: Keyword arguments of `from_pretrained`.

    Raises:
        TypeError: when `model` is neither a name nor a transformers or PEFT model.
        ValueError: when the model is no causal LM, lacks weights, or lies on several devices.
        ImportError: when the model is to be quantized and bitsandbytes is not installed.
    """
    if isinstance(model, str):
        policy = _policy_by_name(model, trained, device, base_model, init_kwargs)
        keep_differentiable(policy)
        return policy
    if not isinstance(model, (PreTrainedModel, PeftModel)):
        raise TypeError(f"`model` must be a name, a transformers model or a PEFT model, got {type(model).__name__}.")
    check_not_partitioned(model, "model")
    inner = causal_lm(model)
    if inner.config.is_encoder_decoder or not inner.can_generate() or inner.get_output_embeddings() is None:
        raise ValueError(
            f"`model` is a {type(inner).__name__}, not a causal language model; give one that generates text."
        )
    check_one_device(inner)
    keep_differentiable(inner)
    return model


def _policy_by_name(
    name: str, trained: bool, device: torch.device | None, base_model: str | None, init_kwargs: dict[str, Any]
) -> PreTrainedModel | PeftModel:
    """Load a causal LM, or a LoRA adapter on one, whose base is frozen."""
    source = find_policy(name, init_kwargs, base_model=base_model)
    quantization = init_kwargs.get("quantization_config") or getattr(source.config, "quantization_config", None)
    check_quantization_library(quantization)
    trained = trained and source.adapter is None
    if trained and quantization is not None:
        raise ValueError(QUANTIZED)
    options = with_dtype(init_kwargs, trained=trained)
    if quantization is None:
        options = placed(options, device)
    check_device_map(options.get("device_map"))
    subject = f"`model` {name!r}"
    if source.adapter is not None:
        subject = f"The base {source.base!r} of the adapter {name!r}"
        options = {key: value for key, value in options.items() if key != "revision"}
        options |= {"revision": source.adapter.revision} if source.adapter.revision else {}
    model = load_whole(AutoModelForCausalLM, source.base, subject, options)
    check_one_device(model)
    if source.adapter is None:
        return model
    return load_adapter(name, model, quantized=quantization is not None, **hub_options(init_kwargs))


def load_whole(auto: Any, name: str, subject: str, options: dict[str, Any], heads: tuple[str, ...] = ()) -> Any:
    """Load a model by name, all of whose weights must be in the checkpoint.

    Args:
        auto: One of transformers' `AutoModel` classes.
        name: Name or folder.
        subject: Beginning of a message: the option and the name, as the user gave them.
        options: Keyword arguments of `from_pretrained`.
        heads: Top-level modules that may be missing from the checkpoint and then start at zero.

    Raises:
        FileNotFoundError, ValueError: when weights are missing, have other shapes or cannot be read.
    """
    try:
        model, info = auto.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"{subject} cannot be loaded: {first_line(error)}.") from error
    missing = sorted(key for key in info["missing_keys"] if key.split(".")[0] not in heads)
    for key in info["missing_keys"].difference(missing):
        nn.init.zeros_(model.get_parameter(key))
    shapes = sorted(info["mismatched_keys"])
    if missing:
        some = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
        raise ValueError(
            f"{subject} lacks {len(missing)} of its weights, which would start at random ({some}); save the whole "
            "model there."
        )
    if shapes:
        key, theirs, ours = shapes[0]
        raise ValueError(
            f"{subject} has {len(shapes)} weights of other shapes than its `config.json` says ({key} is "
            f"{tuple(theirs)} instead of {tuple(ours)}); save the model and its configuration together."
        )
    return model


def placed(options: dict[str, Any], device: torch.device | None) -> dict[str, Any]:
    """Return keyword arguments of `from_pretrained` that load onto `device`, unless they have a `device_map`."""
    if device is None or device.type == "cpu" or options.get("device_map") is not None:
        return options
    return options | {"device_map": {"": device}}


def check_device_map(device_map: Any) -> None:
    """Refuse a `device_map` over several devices before any weights are loaded.

    Raises:
        ValueError: when there are several devices.
    """
    several = isinstance(device_map, dict) and len({str(place) for place in device_map.values()}) > 1
    if several or isinstance(device_map, str) and device_map in _SPREADING and torch.accelerator.device_count() > 1:
        raise ValueError(_SEVERAL_DEVICES.format(device_map))


def check_one_device(model: nn.Module) -> None:
    """Refuse a model on several devices.

    Raises:
        ValueError: when there are several devices.
    """
    places = sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(places) > 1:
        raise ValueError(_SEVERAL_DEVICES.format(", ".join(places)))


def check_not_partitioned(model: nn.Module, option: str) -> None:
    """Refuse a model that ZeRO-3 has partitioned already, which can be neither checked nor copied.

    Raises:
        ValueError: when it is.
    """
    if any(map(is_partitioned, model.parameters())):
        raise ValueError(
            f"`{option}` was loaded in parts, by `deepspeed.zero.Init` or after transformers was told of ZeRO-3; load "
            "it after the PPOConfig is made, or give its name."
        )


def keep_differentiable(model: PreTrainedModel) -> None:
    """Keep quantized layers on a CPU with the one kernel that has a backward pass, in eval mode as well.

    In eval mode bitsandbytes repacks 4-bit weights for its AVX-512 kernel and rounds the scales. The layers stay
    repacked in training mode, where the kernel has no backward pass: layers below silently get no gradient. 8-bit
    layers round their inputs in eval mode only, so that the ratio to the old policy would not start at 1.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.state_dict()  # undoes an earlier repacking
        if type(module).__name__ == "Linear8bitLt" and model.device.type != "cuda":
            module.register_forward_pre_hook(_in_training_mode)


def _in_training_mode(module: nn.Module, _: Any) -> None:
    module.training = True


def compute_dtype(model: PreTrainedModel) -> torch.dtype | None:
    """Return the dtype that a quantized model computes in; None for a model that is not quantized."""
    if not getattr(model, "is_quantized", False):
        return None
    return getattr(model.config.quantization_config, "bnb_4bit_compute_dtype", None) or model.dtype


def load_critic(
    critic: str | PreTrainedModel, policy: nn.Module, *, device: torch.device | None = None, **init_kwargs: Any
) -> tuple[PreTrainedModel, ValueHead]:
    """Load a separate critic, and return its trunk and its value head.

    The head starts with the weights of a reward model (a sequence classifier with one label), and at zero for any other
    model.

    Raises:
        ValueError: when the critic cannot read the policy's tokens, lacks weights, or is quantized, an encoder or a
            classifier with several labels.
    """
    if isinstance(critic, nn.Module):
        check_not_partitioned(critic, "critic")
    score: nn.Module | None = None
    if isinstance(critic, str) and critic == "copy":
        trunk = copy.deepcopy(text_trunk(causal_lm(policy)))
    else:
        model = _critic_by_name(critic, device, init_kwargs) if isinstance(critic, str) else critic
        score = getattr(model, "score", None) or getattr(model, "classifier", None)
        trunk = text_trunk(model)
    if getattr(trunk, "is_quantized", False) or getattr(trunk.config, "quantization_config", None) is not None:
        raise ValueError("`critic` is quantized and cannot be trained; load it in full, or use `critic='adapter'`.")
    vocabularies = [m.get_input_embeddings().num_embeddings for m in (trunk, causal_lm(policy))]
    if vocabularies[0] < vocabularies[1]:
        raise ValueError(
            f"`critic` knows {vocabularies[0]} tokens and the policy {vocabularies[1]}: they must share a tokenizer; a "
            "reward model with another tokenizer belongs in `reward_funcs`."
        )
    check_one_device(trunk)
    keep_differentiable(trunk)
    value_head = ValueHead(check_trunk(trunk, "critic"))
    if isinstance(score, nn.Linear):
        if score.out_features != 1:
            raise ValueError(
                f"`critic` has {score.out_features} labels; a critic starts from a reward model with one, or from a "
                "language model."
            )
        value_head.weight.data.copy_(score.weight.data)
        if score.bias is not None:
            value_head.bias.data.copy_(score.bias.data)
    return trunk, value_head


def _critic_by_name(name: str, device: torch.device | None, init_kwargs: dict[str, Any]) -> PreTrainedModel:
    """Load a critic by name; a classifier without a trained head gets a head at zero."""
    config = find_critic(name, init_kwargs)
    is_classifier = any("ForSequenceClassification" in architecture for architecture in config.architectures or [])
    auto: Any = AutoModelForSequenceClassification if is_classifier else AutoModel
    options = placed(with_dtype(init_kwargs, trained=True), device)
    return load_whole(auto, name, f"`critic` {name!r}", options, heads=_HEADS)


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Copy the weights saved in `folder` into `model`."""

    def read() -> dict[str, Tensor]:
        options = {"dtype": model.dtype}
        return load_whole(_own_class(model), str(folder), f"The checkpoint '{folder}'", options).state_dict()

    load_state(model, read)


def _own_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return the class of a model, which FSDP hides behind a class of its own."""
    return next(c for c in type(model).__mro__ if issubclass(c, PreTrainedModel) and not issubclass(c, FSDPModule))
