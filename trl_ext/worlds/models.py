# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The three tiny models of the offline recipe: a language model, the toxicity reward, and the judge.

The judge differs from the reward in architecture, size, tokenizer and training half, so that a policy that fools the
reward does not fool the judge by the same means.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from tokenizers import trainers as tokenizer_trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as hf_logging
from trl import SFTConfig, SFTTrainer

from trl_ext.files import read_json_lines

MAX_LENGTH = 64
LABELS = {0: "neutral", 1: "toxic"}


class StageBar(TrainerCallback):
    """A progress bar for one training, left on the screen as a line at the end."""

    def __init__(self, stage: str) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self.task = self.progress.add_task(stage)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.progress.update(self.task, total=state.max_steps)
        self.progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        self.progress.update(self.task, completed=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the full bar on the screen."""
        self.progress.stop()


@contextmanager
def quiet() -> Iterator[None]:
    """Forbid requests to the hub, telemetry, and progress bars beside `StageBar` in the block."""
    datasets_bars, transformers_bars = not datasets.are_progress_bars_disabled(), hf_logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    hf_logging.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("transformers", "trl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    was_offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        with warnings.catch_warnings():
            # TRL turns checkpointing on unless `gradient_checkpointing` says no, a name that transformers deprecates.
            warnings.filterwarnings("ignore", message=".*checkpointing", category=FutureWarning)
            yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = was_offline
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if datasets_bars:
            datasets.enable_progress_bars()
        if transformers_bars:
            hf_logging.enable_progress_bar()


def run_training(trainer: Trainer, stage: str) -> None:
    """Train with `trainer`, showing one progress bar named `stage`."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StageBar(stage))
    trainer.train()


def trainer_options(folder: Path, *, epochs: float, batch_size: int, learning_rate: float, seed: int) -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` that every embedded model is trained with."""
    return {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "weight_decay": 0.01,
        "seed": seed,
        # The models are so small that a GPU would gain nothing, and the CPU gives everybody the same ones.
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        # Comments of like length together: a third less padding.
        "train_sampling_strategy": "group_by_length",
    }


def _byte_level_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with separate `<pad>`, `<bos>` (put in front) and `<eos>` (left to the trainer)."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        tokenizer_trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", "<bos>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=MAX_LENGTH,
    )


def _lower_case_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train BPE over lower-cased words; tokenizers' WordPiece trainer gives another vocabulary in every process."""
    tokenizer = Tokenizer(tokenizer_models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        texts, tokenizer_trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=MAX_LENGTH,
    )


def train_language_model(
    texts_file: Path, folder: Path, *, seed: int, vocab_size: int, hidden_size: int, layers: int
) -> None:
    """Train a Llama on the texts with TRL's `SFTTrainer` and save it with its tokenizer.

    Args:
        texts_file: JSONL with a column `text`.
        folder: Folder of the model.
        seed: Seed of the initial weights and of the order of the texts.
        vocab_size: Tokens of the byte-level BPE, at least 259 (bytes and special tokens).
        hidden_size: Width; heads are 32 wide.
        layers: Depth.
    """
    rows = read_json_lines(texts_file)
    tokenizer = _byte_level_tokenizer([row["text"] for row in rows], vocab_size)
    set_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 5 // 2 // 32 * 32,
            num_hidden_layers=layers,
            num_attention_heads=hidden_size // 32,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with quiet():
        arguments = SFTConfig(
            **trainer_options(folder, epochs=1, batch_size=32, learning_rate=3e-3, seed=seed),
            max_length=MAX_LENGTH,
            gradient_checkpointing=False,
        )
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
        )
        run_training(trainer, "language model")
        tokenizer.padding_side = "left"
        save_model(model, tokenizer, folder)


def train_toxicity_classifier(
    labelled_file: Path, folder: Path, *, seed: int, vocab_size: int, hidden_size: int, epochs: int
) -> None:
    """Train the reward: a two-layer BERT over byte-level BPE, labels `neutral` and `toxic`."""
    rows = read_json_lines(labelled_file)
    tokenizer = _byte_level_tokenizer([row["text"] for row in rows], vocab_size)
    tokenizer.padding_side = "right"
    set_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=2,
            num_attention_heads=hidden_size // 32,
            max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id,
            id2label=LABELS,
            label2id={name: label for label, name in LABELS.items()},
        )
    )
    _train_classifier(model, tokenizer, rows, folder, stage="toxicity classifier", seed=seed, epochs=epochs)


def train_judge(
    labelled_file: Path, folder: Path, *, seed: int, vocab_size: int, hidden_size: int, epochs: int
) -> None:
    """Train the evaluator: a three-layer DistilBERT over lower-cased BPE, same labels, never a reward."""
    rows = read_json_lines(labelled_file)
    tokenizer = _lower_case_tokenizer([row["text"] for row in rows], vocab_size)
    set_seed(seed + 1)
    model = DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=len(tokenizer),
            dim=hidden_size,
            hidden_dim=3 * hidden_size,
            n_layers=3,
            n_heads=hidden_size // 32,
            max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id,
            id2label=LABELS,
            label2id={name: label for label, name in LABELS.items()},
        )
    )
    _train_classifier(model, tokenizer, rows, folder, stage="judge", seed=seed + 1, epochs=epochs)


def _train_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[dict[str, Any]],
    folder: Path,
    *,
    stage: str,
    seed: int,
    epochs: int,
) -> None:
    encoded = tokenizer([row["text"] for row in rows], truncation=True, return_token_type_ids=False)
    columns = {**encoded, "labels": [row["label"] for row in rows]}
    with quiet():
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                **trainer_options(folder, epochs=epochs, batch_size=64, learning_rate=2e-3, seed=seed)
            ),
            train_dataset=datasets.Dataset.from_dict(columns),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
        run_training(trainer, stage)
        save_model(model, tokenizer, folder)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save model and tokenizer in `folder` and remove the Trainer's own folder inside it."""
    # The Trainer insists on an output directory of its own.
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def toxic_probabilities(folder: Path | str, texts: list[str], batch_size: int = 256) -> torch.Tensor:
    """Return the probability of the label `toxic`, shape (len(texts),), by a classifier saved in `folder`."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            texts[start : start + batch_size],
            padding=True,
            truncation=True,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        scores.append(model(**batch).logits.float().softmax(-1)[:, model.config.label2id["toxic"]])
    return torch.cat(scores)
