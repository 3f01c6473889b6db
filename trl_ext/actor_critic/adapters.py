# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The policy's LoRA adapter: a new one, or one from a folder."""

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.functional import set_requires_grad
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trl_ext.messages.printable import first_line
from trl_ext.sharding import is_sharded, load_state

from .precision import copies_round_less
from .trunk import causal_lm, modules_beside_text

CRITIC_ADAPTERS, REFERENCE_ADAPTER = ("critic", "critic_2"), "reference"  # added beside the policy's own
ADAPTER_WEIGHTS = "adapter_model.safetensors"
QUANTIZATION_FILE = "quantization_config.json"  # the base's quantization in training
# New adapters with these inits change no output, so that the base is the initial policy.
_IDENTITY_INITS = (True, "gaussian", "orthogonal")


def check_new_adapter(peft_config: PeftConfig, has_adapter: bool) -> None:
    """Check that a policy can get a new adapter, before the policy is loaded.

    Raises:
        TypeError, ValueError: for an object that is no `PeftConfig`, for a policy that has an adapter, and as
            `check_adapter` raises.
    """
    if not isinstance(peft_config, PeftConfig):
        raise TypeError(
            f"`peft_config` must be a PeftConfig (e.g. `peft.LoraConfig`), got {type(peft_config).__name__}."
        )
    if has_adapter:
        raise ValueError(
            "`model` has PEFT adapters already, so `peft_config` has no place: leave it out to train the present "
            "adapter, or merge it first (`model.merge_and_unload()`)."
        )
    check_adapter(peft_config, "default", taken=())


def add_policy_adapter(model: nn.Module, peft_config: PeftConfig) -> tuple[PeftModel, bool]:
    """Wrap the policy in its LoRA adapter: on every linear layer but the head, unless `target_modules` names others.

    Returns:
        The PEFT model, and whether the policy is still exactly the base. It is not with DoRA, with PiSSA and other
        initialisations that change the output, and with copies of half-precision modules: the reference then needs an
        adapter of its own.

    Raises:
        TypeError, ValueError: for an object that is no `PeftConfig`, for a model that has adapters already, or for
            layers that the model lacks.
    """
    check_new_adapter(peft_config, isinstance(model, PeftModel))
    if getattr(peft_config, "target_modules", ()) is None:
        peft_config = dataclasses.replace(peft_config, target_modules="all-linear")
    left_out = _not_adapted(model)
    if left_out and getattr(peft_config, "exclude_modules", "") is None:
        peft_config = dataclasses.replace(peft_config, exclude_modules=left_out)
    starts_at_base = getattr(peft_config, "init_lora_weights", True) in _IDENTITY_INITS
    if getattr(peft_config, "use_dora", False):
        starts_at_base = False  # DoRA scales each layer by a quotient of norms, which is 1 only up to rounding
    if copies_round_less(model, peft_config):
        starts_at_base = False
    try:
        return get_peft_model(model, peft_config), starts_at_base
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise
        linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raise ValueError(
            f"`target_modules` {peft_config.target_modules} are no layers of this {type(model).__name__}; its linear "
            f"layers are {', '.join(sorted(linear))}, and 'all-linear' means all of them but the head."
        ) from error


def _not_adapted(model: nn.Module) -> str:
    """Return a pattern of the linear layers that get no adapter.

    They are those of a vision tower, which reads no text, and routers that return more than a tensor (PhiMoE).
    """
    beside = [rf"(.*\.)?{name}(\..*)?" for name in modules_beside_text(model)]  # type: ignore[arg-type]
    routers = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).__module__.startswith("transformers.models.")
    }
    return "|".join(beside + [rf"(.*\.)?{name}" for name in sorted(routers)])


def with_rank(config: PeftConfig, rank: int) -> PeftConfig:
    """Return a LoRA configuration with another rank and the same scale of its update.

    Raises:
        ValueError: when the adapter has no rank.
    """
    if not isinstance(config, LoraConfig):
        raise ValueError(f"`critic_lora_rank` is for LoRA; {type(config).__name__} has no rank.")
    growth = rank / config.r
    alpha = config.lora_alpha * (growth**0.5 if config.use_rslora else growth)
    return dataclasses.replace(config, r=rank, lora_alpha=alpha, rank_pattern={}, alpha_pattern={})


def on_modules(config: PeftConfig, policy: nn.Module, names: Sequence[str]) -> PeftConfig:
    """Return the critic's LoRA configuration on other layers than the policy's.

    Args:
        config: A LoRA configuration.
        policy: The policy, with or without adapters.
        names: Names of layers or ends of their names, such as `["up_proj", "down_proj"]`; or one pattern: a regular
            expression for whole names, or "all-linear".

    Raises:
        ValueError: when a name or the pattern matches no linear layer of the trunk.
    """
    layers = _trunk_layers(policy)
    chosen: set[str] = set()
    for name in names:
        if name == "all-linear":
            found = set(layers)
        elif re.fullmatch(r"[\w.]+", name):
            found = {layer for layer in layers if f".{layer}".endswith(f".{name}")}
        else:
            found = _matching(name, layers)
        if not found:
            kinds = ", ".join(sorted({layer.rsplit(".", 1)[-1] for layer in layers}))
            raise ValueError(
                f"`critic_target_modules` {name!r} matches no linear layer of this {type(causal_lm(policy)).__name__}; "
                f"its layers are {kinds}, and 'all-linear' means all of them."
            )
        chosen |= found
    changes: dict[str, Any] = {"target_modules": sorted(chosen), "exclude_modules": None, "layers_to_transform": None}
    return dataclasses.replace(config, **changes)


def _matching(pattern: str, layers: list[str]) -> set[str]:
    try:
        return {layer for layer in layers if re.fullmatch(pattern, layer)}
    except re.error as error:
        raise ValueError(f"`critic_target_modules` {pattern!r} is no regular expression ({error}).") from None


def _trunk_layers(policy: nn.Module) -> list[str]:
    """Return the names of the linear layers that hidden states depend on: neither the head's nor a vision tower's."""
    model = causal_lm(policy)
    heads = [rf"{re.escape(name)}(\..*)?" for name in head_names(model)]
    left_out = "|".join([_not_adapted(model), *heads, r".*lora_.*"])
    linear = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    # A layer that has adapters holds the original as its `base_layer`.
    return [name.removesuffix(".base_layer") for name in linear if not re.fullmatch(left_out, name)]


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the layer that turns the hidden states of a causal LM into logits."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [name for name, module in model.named_modules() if module is head]


def check_adapter(config: PeftConfig, name: str, taken: tuple[str, ...]) -> None:
    """Check that the base is unchanged with the policy's adapter off, and that other adapters can be added.

    Raises:
        ValueError: for prompt learning, which has no layers to switch, for trained biases, which the base keeps, and
            for a name among `taken`, those of the other adapters.
    """
    if name in taken:
        raise ValueError(
            f"The policy's adapter is called '{name}', like another adapter that is added; load it under another name "
            "(`adapter_name='sft'`)."
        )
    if config.is_prompt_learning:
        raise ValueError(f"{type(config).__name__} adds tokens and no adapter layers; use LoRA (`peft.LoraConfig`).")
    if getattr(config, "bias", "none") != "none":
        raise ValueError(
            f"`bias={config.bias!r}` in the adapter's configuration trains biases of the base, which is the reference; "
            "use `bias='none'`."
        )


def add_role_adapters(
    policy: PeftModel, reference: str | None, critics: Sequence[str], critic_config: PeftConfig | None
) -> None:
    """Add the other roles' adapters to the policy: a frozen clone of the actor's as reference, and the critics'.

    Args:
        policy: The policy, whose active adapter is the actor's.
        reference: Name of the reference's adapter; None where the base is the reference.
        critics: Names of the critics' adapters.
        critic_config: Their LoRA configuration; None: the actor's.

    Raises:
        ValueError: for critics that are no LoRA, and as `check_adapter` raises.
    """
    actor = policy.active_adapter
    own_config = policy.peft_config[actor]
    check_adapter(own_config, actor, taken=(*CRITIC_ADAPTERS, REFERENCE_ADAPTER))
    if critics and not isinstance(critic_config or own_config, LoraConfig):
        raise ValueError(
            f"`critic='adapter'` needs LoRA, not {type(critic_config or own_config).__name__}; use 'head'."
        )
    if reference is not None:
        policy.add_adapter(reference, plain_config(own_config))
        state = get_peft_model_state_dict(policy, adapter_name=actor, save_embedding_layers=False)
        set_peft_model_state_dict(policy, state, adapter_name=reference)
        set_requires_grad(policy, reference, False)
    for name in critics:
        policy.add_adapter(name, _below_head(policy, plain_config(critic_config or own_config, modules_to_save=None)))
    for name in (*critics, actor):
        set_requires_grad(policy, name, True)
    model = causal_lm(policy)
    for name in modules_beside_text(model):
        model.base_model.get_submodule(name).requires_grad_(False)


def _below_head(policy: PeftModel, config: PeftConfig) -> PeftConfig:
    """Return a critic's configuration that leaves out the head: values do not go through it, so it would never learn.

    Raises:
        ValueError: when no other layer is left.
    """
    model = causal_lm(policy)
    heads = head_names(model)
    found = {name for name, _ in model.named_modules() if check_target_module_exists(config, name)}
    if found.isdisjoint(heads):
        return config
    if all(name.startswith(tuple(heads)) for name in found):
        raise ValueError(
            f"`critic='adapter'` takes the layers of the policy's adapter, which is on {', '.join(heads)} alone, and "
            "values do not go through it; name others in `critic_target_modules`, or use `critic='head'`."
        )
    left_out = config.exclude_modules  # type: ignore[attr-defined]
    if isinstance(left_out, str):  # a pattern of whole names
        return dataclasses.replace(config, exclude_modules="|".join([left_out, *map(re.escape, heads)]))  # type: ignore[call-arg]
    return dataclasses.replace(config, exclude_modules=[*(left_out or ()), *heads])  # type: ignore[call-arg]


def plain_config(config: PeftConfig, **changes: Any) -> PeftConfig:
    """Return a copy of an adapter configuration for a trainable adapter that changes no output at first."""
    known = {field.name for field in dataclasses.fields(config)}
    changes |= {name: True for name in ("init_lora_weights", "init_ia3_weights") if name in known}
    return dataclasses.replace(config, inference_mode=False, **changes)


def load_adapter(name: str, base: PreTrainedModel, *, quantized: bool, **options: Any) -> PeftModel:
    """Load a LoRA adapter of TRL, unsloth, LLaMA-Factory or this package for further training.

    The embeddings of the base grow where tokens were added in training. `options` are those of `from_pretrained` that
    say where files come from.

    Raises:
        ValueError: when the adapter's weights cannot be read, are missing, or belong to another base.
    """
    subject = f"`model` {name!r}"
    folder = Path(name)
    if folder.is_dir() and not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{subject} is an adapter without `{ADAPTER_WEIGHTS}`; save it again as safetensors.")
    if (folder / QUANTIZATION_FILE).is_file() and not quantized:
        warnings.warn(
            f"{subject} was trained on a quantized base and this one is not; give the same `quantization_config` to "
            "start from the same policy.",
            stacklevel=5,
        )
    try:
        saved = load_peft_weights(name, device="cpu", **options)
        if folder.is_dir():
            resize_for_adapter(base, folder)
        policy = PeftModel.from_pretrained(base, name, is_trainable=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = "weights of other shapes" if "size mismatch" in str(error) else first_line(error)
        raise ValueError(f"{subject} cannot be loaded on its base {base.name_or_path!r}: {reason}.") from error
    needed = get_peft_model_state_dict(policy, save_embedding_layers=False).keys()
    missing = sorted(needed - saved.keys())
    if missing:
        some = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
        raise ValueError(f"{subject} lacks {len(missing)} of its weights ({some}); save the whole adapter there.")
    foreign = sorted(key for key in saved.keys() - needed if not _is_embedding(key))
    if foreign:
        raise ValueError(
            f"{subject} has {len(foreign)} weights for which its base {base.name_or_path!r} has no place "
            f"({foreign[0]}); it belongs to another base."
        )
    return policy


def save_adapter(policy: PeftModel, folder: Path, name: str, state: dict[str, Tensor] | None = None) -> None:
    """Write one of the policy's adapters into a folder, as PEFT reads it.

    Args:
        policy: The policy.
        folder: The folder.
        name: Name of the adapter.
        state: Whole state dict of the policy, where this process has but a part of the weights.
    """
    policy.save_pretrained(folder, selected_adapters=[name], state_dict=state)
    # PEFT puts every adapter but the one called "default" into a folder of its own.
    own = folder / name
    if own.is_dir() and name != "default":
        for file in own.iterdir():
            os.replace(file, folder / file.name)
        own.rmdir()
    if name != policy.active_adapter:
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card names the folder of the base


def load_adapter_weights(policy: PeftModel, folder: Path, name: str) -> None:
    """Read what `save_adapter` wrote into the adapter of that name."""
    if not is_sharded(policy):
        set_peft_model_state_dict(policy, load_file(folder / ADAPTER_WEIGHTS), adapter_name=name)
        return
    # PEFT renames keys as it saves them; given names in place of tensors, it says which becomes which.
    names: Any = {key: key for key in policy.state_dict()}
    renamed = get_peft_model_state_dict(policy, names, adapter_name=name, save_embedding_layers=False)

    def read() -> dict[str, Tensor]:
        return {renamed[key]: value for key, value in load_file(folder / ADAPTER_WEIGHTS).items()}

    load_state(policy, read, strict=False)


def saved_quantization(folder: Path) -> BitsAndBytesConfig | None:
    """Read how the base of an adapter was quantized in training; None where it was not.

    Raises:
        ValueError: when the record in `folder` cannot be read.
    """
    record = folder / QUANTIZATION_FILE
    if not record.is_file():
        return None
    try:
        return BitsAndBytesConfig.from_dict(json.loads(record.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"'{record}' cannot be read ({error}); remove it to use the base's original weights instead."
        ) from error


def _is_embedding(key: str) -> bool:
    """Return whether a weight in an adapter's file is that of embeddings or a head, saved for added tokens."""
    return any(name in key for name in ("embed", "lm_head", "wte")) and "lora_" not in key


def resize_for_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Resize the embeddings of a freshly loaded base to the vocabulary of the adapter's training.

    The size follows from the adapter's weights, since published models have more embeddings than their tokenizer needs.

    Raises:
        ValueError: when the adapter lacks weights of added tokens.
    """
    layers = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    names = {part: name for name, m in model.named_modules() for part, layer in layers.items() if m is layer}
    rows: dict[str, int] = {}
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        for key in weights.keys():  # noqa: SIM118  no mapping
            for part, name in names.items():
                if key.startswith(f"base_model.model.{name}.") and key.endswith("weight") and ".lora_" not in key:
                    rows[part] = weights.get_slice(key).get_shape()[0]
    chosen = json.loads((folder / "adapter_config.json").read_text()).get("trainable_token_indices") or []
    trained = {i for row in (chosen.values() if isinstance(chosen, dict) else [chosen]) for i in row}
    present = model.get_input_embeddings().weight.shape[0]
    wanted = max(rows.values(), default=max([present, *(i + 1 for i in trained)]))
    added = set(range(present, wanted))
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        lacking = [] if rows or added <= trained else ["embeddings"]
    else:
        lacking = [part for part in layers if part not in rows and not (part == "embeddings" and added <= trained)]
    if added and lacking:
        layer = names[lacking[0]].rsplit(".", 1)[-1]
        raise ValueError(
            f"The adapter in '{folder}' was trained with {len(added)} tokens more than its base has, and lacks their "
            f"weights in '{layer}'; train it with `modules_to_save=['{layer}']`."
        )
    if wanted != present:
        model.resize_token_embeddings(wanted, mean_resizing=False)
