# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers that a policy cannot be trained with, and those that it can."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from tests import scripted
from tests.bad_inputs.case import Case, check, table
from tests.real_tokenizers import real_tokenizer
from tests.tiny_models import tiny_causal_lm, tiny_tokenizer


def without(*names: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    for name in names:
        setattr(tokenizer, name, None)
    return tokenizer


def with_tokens(**tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer that was given tokens which the model knows nothing of."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(dict(tokens))
    return tokenizer


class Processor(ProcessorMixin):
    """A processor of a vision-language model, without its parts."""

    def __init__(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(tokenizer: Any, **options: Any) -> Any:
    """Build a trainer in the working directory."""
    return scripted.trainer("run", processing_class=tokenizer, **options)


RESIZE = "call `model.resize_token_embeddings(len(tokenizer))`, or use the model's own tokenizer."
CASES = [
    Case(
        "a processor",
        lambda: train(Processor()),
        TypeError,
        "`processing_class` is a Processor; PPOTrainer trains on text alone, so give its tokenizer, "
        "`processor.tokenizer`.",
    ),
    Case(
        "a name",
        lambda: train("gpt2"),
        TypeError,
        "`processing_class` is a str; give the tokenizer itself, `AutoTokenizer.from_pretrained('gpt2')`.",
    ),
    Case(
        "a tokenizer of the library below",
        lambda: train(tiny_tokenizer().backend_tokenizer),
        TypeError,
        "`processing_class` is a Tokenizer; wrap it, `PreTrainedTokenizerFast(tokenizer_object=tokenizer)`, and name "
        "its EOS token.",
    ),
    Case(
        "a function",
        lambda: train(len),
        TypeError,
        "`processing_class` is a builtin_function_or_method; give a tokenizer of transformers.",
    ),
    Case(
        "neither padding nor EOS",
        lambda: train(without("pad_token", "eos_token")),
        ValueError,
        "The tokenizer has neither a padding nor an EOS token; set `tokenizer.eos_token` to the token that ends a "
        "text.",
    ),
    Case(
        "an added padding token",
        lambda: train(with_tokens(pad_token="[PAD]")),
        ValueError,
        "The tokenizer's padding token cannot be used: the token '[PAD]' has the id 160, and the model has embeddings "
        f"for 160 tokens; {RESIZE}",
    ),
    Case(
        "an added EOS token",
        lambda: train(with_tokens(eos_token="<|im_end|>")),
        ValueError,
        "The tokenizer's EOS token cannot be used: the token '<|im_end|>' has the id 160, and the model has embeddings "
        f"for 160 tokens; {RESIZE}",
    ),
    Case(
        "an added token in a prompt",
        lambda: train(with_tokens(sep_token="<sep>"), train_dataset=Dataset.from_dict({"prompt": ["a", "a<sep>"]})),
        ValueError,
        "`train_dataset` row 1: the token '<sep>' has the id 160, and the model has embeddings for 160 tokens; "
        f"{RESIZE}",
    ),
    Case(
        "an added token in a prompt for evaluation",
        lambda: train(
            with_tokens(sep_token="<sep>"), eval_dataset={"held out": Dataset.from_dict({"prompt": ["<sep>"]})}
        ),
        ValueError,
        "`eval_dataset['held out']` row 0: the token '<sep>' has the id 160, and the model has embeddings for 160 "
        f"tokens; {RESIZE}",
    ),
    Case(
        "an added token in a text of PPO-ptx",
        lambda: train(
            with_tokens(sep_token="<sep>"), ptx_dataset=Dataset.from_dict({"text": ["a", "a<sep>b"]}), ptx_coef=0.5
        ),
        ValueError,
        f"`ptx_dataset` row 1: the token '<sep>' has the id 160, and the model has embeddings for 160 tokens; {RESIZE}",
    ),
    Case(
        "another model's larger vocabulary",
        lambda: train(real_tokenizer("mistral v1")),
        ValueError,
        "`train_dataset` row 0: the token '▁the' has the id 272, and the model has embeddings for 160 tokens; "
        f"{RESIZE}",
    ),
    Case(
        "another model's smaller vocabulary",
        lambda: train(tiny_tokenizer(), model=tiny_causal_lm(vocab_size=1000)),
        UserWarning,
        "The tokenizer has 160 tokens and the model embeddings for 1000, so it may be another model's; tokens beyond "
        "its vocabulary are decoded to nothing.",
    ),
]


@table(CASES)
def test_tokenizers_that_cannot_be_used(case: Case, folder: Path) -> None:
    check(case)


def test_a_wrong_tokenizer_is_told_before_a_model_is_loaded(folder: Path) -> None:
    with pytest.raises(TypeError, match="`processing_class` is a str"):
        train("gpt2", model="no/such-model")
    with pytest.raises(TypeError, match="`train_dataset` must be"):
        train(tiny_tokenizer(), model="no/such-model", train_dataset=["a"])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["tiny", "slow"])
def test_the_padding_side_makes_no_difference(kind: str, side: str, folder: Path) -> None:
    """Slow tokenizers train too; completions and what is learned from them are those of the other side."""
    tokenizer = real_tokenizer(kind)
    tokenizer.padding_side = side
    made = train(tokenizer, model=tiny_causal_lm(vocab_size=len(tokenizer)), scripted=False, total_episodes=8)
    made.train()
    loss = scripted.logs(made)[-1]["loss"]
    tokenizer.padding_side = "right" if side == "left" else "left"
    again = train(tokenizer, model=tiny_causal_lm(vocab_size=len(tokenizer)), scripted=False, total_episodes=8)
    again.train()
    assert scripted.logs(again)[-1]["loss"] == loss
