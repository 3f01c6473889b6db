# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers, models and data small enough to be built in a test, from real classes and without files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>", "<system>"]
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCAB_SIZE = 160

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_TEXT = [
    "the cat sat on the mat and looked at the other cat",
    "a small dog ran to the old house near the river",
    "you are a kind person and the weather is nice today",
    "this is the worst idea that anyone has ever had",
    "what do you think about the new book on the table",
]

_DROPOUT_FIELDS = {
    "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    "phi": ("attention_dropout", "embd_pdrop", "resid_pdrop"),
    "gpt_neox": ("attention_dropout", "hidden_dropout"),
}


def tiny_tokenizer(chat_template: bool = True, pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `VOCAB_SIZE` tokens that encodes every ASCII text and decodes it back exactly.

    Args:
        chat_template: whether it has one.
        pad_is_eos: make the padding token the EOS token, as many causal models do.

    Returns:
        A tokenizer that pads on the left; `<pad>`, `<bos>` and `<eos>` are 0, 1 and 2.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    # The byte-level spelling of a space is "Ġ", of a newline "Ċ".
    alphabet = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(_TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<eos>" if pad_is_eos else "<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
        padding_side="left",
        model_max_length=128,
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _sizes(arch: str, vocab_size: int, hidden_size: int, layers: int, dropout: float) -> dict[str, Any]:
    # With the usual 0.02 a model this narrow gives every token the same logit, and no update would show.
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    if arch in ("llama", "qwen2", "mistral", "gemma2"):
        sizes["num_key_value_heads"] = 2
    if arch == "gemma2":
        sizes["head_dim"] = hidden_size // 4
    if arch == "bert":
        fields: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    else:
        fields = _DROPOUT_FIELDS.get(arch, ("attention_dropout",))
    return sizes | dict.fromkeys(fields, dropout)


def tiny_causal_lm(
    arch: str = "llama",
    vocab_size: int = VOCAB_SIZE,
    hidden_size: int = 32,
    layers: int = 2,
    seed: int = 0,
    dropout: float = 0.0,
    eos_token_id: int | list[int] = EOS_ID,
) -> PreTrainedModel:
    """A causal language model with random float32 weights whose next-token distribution is far from uniform.

    Args:
        arch: llama, gpt2, qwen2, mistral, gemma2, phi or gpt_neox.
        dropout: probability in every dropout layer that the architecture has.
        eos_token_id: a list ends completions early and often, which a random model otherwise seldom does.
    """
    config = AutoConfig.for_model(arch, **_sizes(arch, vocab_size, hidden_size, layers, dropout))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = eos_token_id
    return model


def tiny_classifier(
    labels: Sequence[str] = ("neutral", "toxic"),
    arch: str = "bert",
    vocab_size: int = VOCAB_SIZE,
    hidden_size: int = 32,
    layers: int = 1,
    seed: int = 0,
    problem_type: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier with random float32 weights; one label makes it a scalar reward model.

    Args:
        labels: names of the classes in the order of the logits.
        arch: bert, or any of the causal architectures.
        problem_type: "multi_label_classification" for independent labels.
    """
    sizes = _sizes(arch, vocab_size, hidden_size, layers, dropout=0.0)
    names = dict(enumerate(labels))
    sizes |= {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": problem_type}
    config = AutoConfig.for_model(arch, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()


def prompt_dataset(n: int, conversational: bool = False) -> Dataset:
    """`n` distinct prompts of several lengths in a column `prompt`, as text or as one user message each."""
    words = " ".join(_TEXT).split()
    prompts = [f"{i} " + " ".join(words[i % 11 : i % 11 + 2 + i % 5]) for i in range(n)]
    if conversational:
        return Dataset.from_dict({"prompt": [[{"role": "user", "content": prompt}] for prompt in prompts]})
    return Dataset.from_dict({"prompt": prompts})


def save_tiny(folder: Path | str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """Save a model and its tokenizer for loading by name, and return the folder as a string."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return str(folder)
