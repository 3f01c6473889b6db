# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Models of a given architecture with random weights, quantized layer by layer: nothing is downloaded or read."""

import importlib
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.quantization_config import QuantizationMethod

from trl_ext.actor_critic.loading import keep_differentiable
from trl_ext.actor_critic.trunk import disable_randomness
from trl_ext.planner.weights import linear_layers

SPECIAL = ("<pad>", "<unk>", "<eos>")  # ids 0, 1 and 2
EOS_ID = 2


def quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return the configuration that a recipe gives for this quantization; None for "none"."""
    if quantization == "none":
        return None
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def random_model(
    config: PretrainedConfig,
    *,
    quantization: str = "none",
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    reward: bool = False,
) -> PreTrainedModel:
    """Build a model with random weights, as `from_pretrained` would have loaded and quantized it.

    There is never more than one layer in full precision.

    Args:
        config: Its configuration.
        quantization: "nf4" (with double quantization), "int8" or "none".
        dtype: Of everything that is not quantized.
        device: Where it is built.
        reward: Build a sequence classifier with one label instead of a causal LM.

    Raises:
        ImportError: when it is to be quantized and bitsandbytes is not installed.
    """
    auto = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    config.num_labels, config.pad_token_id = 1, SPECIAL.index("<pad>")
    with init_empty_weights(include_buffers=False):
        model = auto.from_config(config, dtype=dtype)
    model.tie_weights()
    settings = quantization_config(quantization, dtype)
    if settings is not None:
        for name, (layer, inputs, outputs) in linear_layers(model).items():
            if name != "score":  # the head of a classifier
                model.set_submodule(name, _quantized(inputs, outputs, layer.bias is not None, settings, dtype, device))
        model.config.quantization_config = settings
        model.is_quantized = True
        model.is_loaded_in_4bit, model.is_loaded_in_8bit = quantization == "nf4", quantization == "int8"
        model.quantization_method = QuantizationMethod.BITS_AND_BYTES
    _materialize(model, dtype, device)
    keep_differentiable(model)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    disable_randomness(model)
    if not reward:
        model.generation_config.eos_token_id = EOS_ID
    return model.eval()


def _quantized(
    inputs: int, outputs: int, bias: bool, settings: BitsAndBytesConfig, dtype: torch.dtype, device: Any
) -> nn.Module:
    """Build a quantized linear layer with random weights; `_materialize` adds its bias."""
    try:
        bnb: Any = importlib.import_module("bitsandbytes.nn")
    except ImportError as error:
        raise ImportError(
            "Quantization needs bitsandbytes; install it with `pip install 'trl_ext[quantization]'`."
        ) from error
    weight = _random((outputs, inputs), dtype, device)
    if settings.load_in_8bit:
        layer = bnb.Linear8bitLt(inputs, outputs, bias, has_fp16_weights=False, threshold=6.0, device="meta")
        # It quantizes on the way from the CPU to another device.
        layer.weight = bnb.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
        return layer
    options = {"compress_statistics": True, "quant_type": "nf4"}
    layer = bnb.Linear4bit(inputs, outputs, bias, compute_dtype=dtype, device="meta", **options)
    layer.weight = bnb.Params4bit(weight, requires_grad=False, module=layer, **options).to(device)
    return layer


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: Any) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device).normal_(std=0.02)


def _materialize(model: nn.Module, dtype: torch.dtype, device: Any) -> None:
    """Give random weights to the parameters on the meta device; tied parameters stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            if id(parameter) not in made:
                matrix = parameter.dim() > 1
                fill = torch.ones if "weight" in name else torch.zeros  # norms, biases
                value = _random(parameter.shape, dtype, device) if matrix else fill(parameter.shape, dtype=dtype)
                made[id(parameter)] = nn.Parameter(value.to(device), requires_grad=False)
            setattr(module, name, made[id(parameter)])


@torch.no_grad()
def end_with_probability(model: PreTrainedModel, probability: float) -> None:
    """Let a random Llama sample EOS with this probability at every token, so that lengths are geometric.

    The first dimension of its hidden states becomes a constant, from which only the logit of EOS is read.
    """
    model.get_input_embeddings().weight[:, 0] = 1.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    head = model.get_output_embeddings().weight
    head[:, 0], head[EOS_ID] = 0.0, 0.0
    ids = torch.randint(len(SPECIAL), len(head), (4, 64), generator=torch.Generator().manual_seed(0)).to(model.device)
    hidden = model.model(ids).last_hidden_state.float()
    others = (hidden @ head.float().T).index_fill(-1, torch.tensor(EOS_ID, device=model.device), -torch.inf)
    logit = others.logsumexp(-1).mean() + math.log(probability / (1 - probability))
    head[EOS_ID, 0] = logit / hidden[..., 0].mean()


def save_reward_adapter(config: PretrainedConfig, folder: Path, rank: int) -> Path:
    """Write a LoRA reward adapter with random weights for models of this configuration, as `RewardTrainer` would."""
    config.num_labels = 1
    lora = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with torch.device("meta"):
        model = get_peft_model(AutoModelForSequenceClassification.from_config(config), lora)
    state = {name: 0.01 * torch.randn(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    folder.mkdir(parents=True)
    lora.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors")
    return folder


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one word for every id, so that any sampled completion keeps its length as text."""
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", padding_side="left"
    )


def prompts(n: int, length: int, vocab_size: int) -> Dataset:
    """Return `n` random prompts of exactly `length` tokens of [`word_tokenizer`]."""
    ids = torch.randint(len(SPECIAL), vocab_size, (n, length), generator=torch.Generator().manual_seed(0))
    # With a space at the end, so that the first word of the completion stays one.
    return Dataset.from_dict({"prompt": ["".join(f"w{i} " for i in row) for row in ids.tolist()]})
