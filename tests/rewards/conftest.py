# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tiny models and a tokenizer, built in code: nothing is downloaded."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "<eos>", "a", "b", "c", "d", "e", "good", "bad", "day", "you", "are", "the",
    "user", "assistant", ":",
]  # fmt: skip


def _tokenizer(**special):
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend, {"unk_token": "[UNK]", "model_max_length": 32, **special}


@pytest.fixture
def tokenizer():
    """One token a word, [CLS] ... [SEP], as BERT has it."""
    backend, special = _tokenizer(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture
def no_pad_tokenizer():
    """One token a word and nothing around them, no pad token, as GPT-2 has it."""
    backend, special = _tokenizer(eos_token="<eos>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture
def classifier():
    """Builds a BERT classifier: `bias` makes its logits constant, otherwise they depend on the text."""

    def build(labels, bias=None, **options):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            initializer_range=0.5,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            **options,
        )
        model = BertForSequenceClassification(config)
        if bias is not None:
            torch.nn.init.zeros_(model.classifier.weight)
            model.classifier.bias.data = torch.tensor(bias)
        return model

    return build


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Saves a model and the tokenizer in a folder and returns its name."""

    def save(model):
        folder = str(tmp_path / "tiny-model")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def raw_logits(tokenizer):
    """The model's logits for one text at a time, by the plain forward pass: an oracle for everything batched."""

    def run(model, texts, tokenizer=tokenizer, **options):
        model.eval()
        with torch.no_grad():
            return torch.cat([model(**tokenizer(text, return_tensors="pt", **options)).logits for text in texts])

    return run
