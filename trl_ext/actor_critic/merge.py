# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Merge a trained LoRA policy into its base: a plain model that needs neither PEFT nor bitsandbytes."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from trl_ext.folders import whole_folder
from trl_ext.messages.printable import one_line

from .adapters import ADAPTER_WEIGHTS, resize_for_adapter, saved_quantization
from .names import ADAPTER_CONFIG, first_tokenizer, inner_hint, recorded_base


def merge(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    original_base: bool = False,
    base_model: str | None = None,
) -> None:
    """Write the merged, full-precision model of a LoRA run, with its tokenizer.

    An adapter is trained against the rounding of its quantized base. By default the base is therefore quantized again
    in the same way, dequantized, and merged with the adapter: the merged model computes what the policy computed. An
    accelerator holds at most the quantized base and one layer in full precision. `output` appears when it is complete.

    Args:
        folder: Folder that `ActorCritic.save_pretrained` or the trainer saved.
        output: Folder for the merged model, empty or not there yet.
        dtype: Dtype of the merged weights; default: the checkpoint's own.
        original_base: Merge into the base's original weights instead, which are more exact than quantized ones, but
            which the adapter was not trained on.
        base_model: Name or folder of the base, if it has moved.

    Raises:
        FileNotFoundError: when there is no adapter in `folder`.
        ValueError: when the adapter is of a kind that cannot be merged into a language model, when its base is not
            found or does not fit, or when `output` is a file or a folder with content.
        ImportError: when the base was quantized and bitsandbytes is not installed.
    """
    folder, output = Path(folder), Path(output)
    config = _adapter_config(folder)
    _check_output(output)
    base = base_model or _recorded(folder) or config.base_model_name_or_path
    if not base:
        raise ValueError(f"The adapter in '{folder}' names no base model; give it as `base_model` (`--base_model`).")
    quantization = saved_quantization(folder)
    if original_base and quantization is None:
        warnings.warn(
            f"`original_base` has no effect: the base of '{folder}' was not quantized in training.", stacklevel=2
        )
    tokenizer = _tokenizer(folder, base)
    try:
        model = _base(base, dtype, None if original_base else quantization)
    except OSError as error:
        raise ValueError(
            f"The base model '{base}' of '{folder}' cannot be loaded ({one_line(error, 100)}); if it has "
            "moved, give its folder as `base_model` (`--base_model`)."
        ) from error
    resize_for_adapter(model, folder)
    try:
        policy = PeftModel.from_pretrained(model, str(folder))
    except RuntimeError as error:
        detail = " ".join(str(error).splitlines()[-1].split())
        raise ValueError(f"The adapter in '{folder}' does not fit the base model '{base}': {detail[:200]}") from error
    _split_tied(model)
    merged = policy.merge_and_unload(safe_merge=True)
    _untie_if_different(merged)
    with whole_folder(output) as unfinished:
        merged.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)


def _recorded(folder: Path) -> str | None:
    """Return the folder of the base as the run recorded it; the adapter may name it relative to another folder."""
    recorded = recorded_base(folder)
    return recorded if recorded is not None and Path(recorded).is_dir() else None


def _adapter_config(folder: Path) -> PeftConfig:
    """Read the configuration of an adapter, and check that it can be merged and that its weights can be read."""
    if (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(f"'{folder}' is a whole model already, with nothing to merge; use the folder as it is.")
    if not (folder / ADAPTER_CONFIG).is_file():
        hint = inner_hint(folder, ADAPTER_CONFIG) or "give the folder of a run with LoRA."
        raise FileNotFoundError(f"'{folder}' has no `{ADAPTER_CONFIG}`; {hint}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(f"'{folder}' has no `{ADAPTER_WEIGHTS}`; give the folder of a run with LoRA.")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt"):
            pass
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"The adapter in '{folder}' cannot be read ({one_line(error, 100)}); it may have been saved only in part."
        ) from error
    if config.is_prompt_learning:
        raise ValueError(
            f"The adapter in '{folder}' is a {type(config).__name__}, which adds tokens and changes no weights; only "
            "adapters such as LoRA can be merged."
        )
    if config.task_type not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"The adapter in '{folder}' is for the task {config.task_type}, not for a language model; give the folder "
            "of a policy."
        )
    return config


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"'{output}' is a file; give a folder for the merged model.")
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"The folder '{output}' is not empty; choose another.")


def _tokenizer(folder: Path, base: str) -> Any:
    """Load the tokenizer of the run or of its base, with a warning where there is none."""
    tokenizer = first_tokenizer(str(folder), base)
    if tokenizer is None:
        warnings.warn(
            f"Neither '{folder}' nor '{base}' has a tokenizer; the merged model is saved without one.", stacklevel=3
        )
    return tokenizer


def _base(base: str, dtype: torch.dtype | None, quantization: BitsAndBytesConfig | None) -> PreTrainedModel:
    """Load the base in full precision, on the CPU; a quantized base is quantized and dequantized first."""
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    if quantization is None:
        return AutoModelForCausalLM.from_pretrained(base, **options)
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # needs bitsandbytes

    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization, **options)
    kept = model.dtype
    quantized = [name for name, p in model.named_parameters() if type(p).__name__ in ("Params4bit", "Int8Params")]
    # One by one: the device may hold all layers quantized, but not all in full precision.
    for name in (name.removesuffix(".weight") for name in quantized):
        layer: Any = model.get_submodule(name)
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
        plain.weight = nn.Parameter(weight.to("cpu", kept), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.data.to("cpu", kept), requires_grad=False)
        model.set_submodule(name, plain)
        del layer, weight
    model.hf_quantizer.remove_quantization_config(model)
    return model.to("cpu", kept)  # type: ignore[call-overload]


def _split_tied(model: PreTrainedModel) -> None:
    """Give a tied head a weight of its own where LoRA is on it or on the embeddings.

    Merging changes weights in place: in a shared one, each side would get the update of the other.
    """
    layers = [layer for layer in (model.get_output_embeddings(), model.get_input_embeddings()) if layer is not None]
    if not any(isinstance(layer, BaseTunerLayer) for layer in layers):
        return
    bases: list[Any] = [layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers]
    if len(bases) == 2 and bases[0].weight is bases[1].weight:
        bases[0].weight = nn.Parameter(bases[0].weight.detach().clone())


def _untie_if_different(model: PreTrainedModel) -> None:
    """Switch off `tie_word_embeddings` where merging has made embeddings and head different."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config()
    if not getattr(config, "tie_word_embeddings", False) or head is None:
        return
    if head.weight is not embeddings.weight and not torch.equal(head.weight, embeddings.weight):
        model.config.tie_word_embeddings = config.tie_word_embeddings = False
        # Otherwise `save_pretrained` would leave out the head, and `from_pretrained` tie it again.
        model.all_tied_weights_keys = {}


if __name__ == "__main__":
    from trl_ext.commands.merge import main

    main()
