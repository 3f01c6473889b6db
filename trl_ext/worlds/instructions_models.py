# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The embedded example of the instruction recipe: a small language model before fine-tuning, and its data."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from trl_ext.files import write_json_lines

from . import cache, default_cache_dir, instructions
from .models import quiet, run_training, save_model, trainer_options

MAX_LENGTH = 64


class InstructionAssets(NamedTuple):
    """Paths of the embedded model and data.

    Attributes:
        model: Folder of the language model, which has read instructions and answers of all sorts.
        demonstrations: JSONL with `prompt`, `completion`, for supervised learning.
        train_prompts: JSONL with `prompt`, `kind`, `key`: for preference pairs and PPO.
        eval_prompts: The same; none of these occurs anywhere else.
    """

    model: str
    demonstrations: str
    train_prompts: str
    eval_prompts: str


@dataclass(frozen=True)
class InstructionSettings:
    """Sizes and qualities of the embedded model and data; the defaults take about four minutes on two cores.

    Attributes:
        texts: Instructions with answers that the language model reads.
        texts_right: Share of them that is right; the rest is sloppy or wrong.
        demonstrations: Rows for supervised learning.
        demonstrations_right: Share of them that is right: low, so that there is something left to learn.
    """

    texts: int = 240_000
    texts_right: float = 0.8
    demonstrations: int = 8_000
    demonstrations_right: float = 0.3
    train_prompts: int = 12_000
    eval_prompts: int = 510
    hidden_size: int = 128
    layers: int = 4


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a word, with `<bos>` in front."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words = {word: i for i, word in enumerate([*special, *instructions.vocabulary()])}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=MAX_LENGTH,
    )


def train_base(folder: Path, settings: InstructionSettings, seed: int) -> None:
    """Train a Llama on instructions and answers with TRL's `SFTTrainer` and save it with its tokenizer."""
    tokenizer = word_tokenizer()
    rows = list(instructions.demonstrations(settings.texts, seed, settings.texts_right))
    set_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=2 * settings.hidden_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.hidden_size // 32,
            max_position_embeddings=2 * MAX_LENGTH,
            tie_word_embeddings=True,
            # With the usual 0.02 a model this narrow takes several times as long to learn to copy.
            initializer_range=0.08,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with quiet():
        arguments = SFTConfig(
            # Texts of like length are of like kinds, and batches of one kind teach less than mixed ones.
            **trainer_options(folder, epochs=1, batch_size=64, learning_rate=2e-3, seed=seed)
            | {"train_sampling_strategy": "random"},
            max_length=MAX_LENGTH,
            gradient_checkpointing=False,
        )
        dataset = datasets.Dataset.from_list(rows)
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
        run_training(trainer, "language model")
        tokenizer.padding_side = "left"
        save_model(model, tokenizer, folder)


def write_data(folder: Path, settings: InstructionSettings, seed: int) -> None:
    """Write demonstrations and prompts."""

    def write(name: str, rows: list[dict[str, str]]) -> None:
        write_json_lines(folder / name, rows)

    shown = instructions.demonstrations(settings.demonstrations, seed + 1, settings.demonstrations_right)
    write("demonstrations.jsonl", list(shown))
    write("prompts_train.jsonl", [i._asdict() for i in instructions.instructions(settings.train_prompts, seed)])
    unseen = instructions.instructions(settings.eval_prompts, seed, held_out=True)
    write("prompts_eval.jsonl", [i._asdict() for i in unseen])


def prepare_instructions(
    cache_dir: str | Path | None = None, seed: int = 0, settings: InstructionSettings | None = None
) -> InstructionAssets:
    """Make the language model and the data of the instruction recipe, or find them in the cache.

    Args:
        cache_dir: Folder of the cache; `default_cache_dir()` if None.
        seed: Seed of the world and of the training run.
        settings: Sizes; other sizes, another seed or another version of this package make a new folder.

    Raises:
        OSError: If the cache directory cannot be written.
    """
    settings = settings or InstructionSettings()
    files = [instructions.__file__, __file__]
    root = (
        Path(cache_dir or default_cache_dir()).expanduser().resolve()
        / f"instructions-{cache.key(settings, seed, files)}"
    )
    data = cache.build_once(root / "data", lambda folder: write_data(folder, settings, seed))
    model = cache.build_once(root / "lm", lambda folder: train_base(folder, settings, seed))
    names = ("demonstrations", "prompts_train", "prompts_eval")
    return InstructionAssets(str(model), *(str(data / f"{name}.jsonl") for name in names))
