# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The embedded example of the detoxification recipe: models and prompts that are made in about a minute.

`prepare` writes comments from a grammar and trains a language model, a toxicity classifier (the reward) and a judge
(the evaluator) on them. Nothing is downloaded. Everything is cached and made only once.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trl_ext.files import read_json_lines, write_json

from . import cache, corpus, grammar, models, vocabulary

__all__ = ["OfflineAssets", "OfflineSettings", "default_cache_dir", "prepare"]


class OfflineAssets(NamedTuple):
    """Paths of the embedded models and prompts, and accuracies of the classifiers.

    Attributes:
        model: Folder of the language model and its tokenizer.
        toxicity_model: Folder of the classifier that serves as reward (labels `neutral`, `toxic`).
        judge_model: Folder of the classifier that serves as evaluator only.
        train_prompts: JSONL with a column `prompt`.
        eval_prompts: The same; no prompt is in both, and none of these occurs in any training text.
        toxicity_accuracy: Share of held-out comments that the toxicity classifier labels correctly.
        judge_accuracy: Share of held-out comments that the judge labels correctly.
        agreement: Share of held-out comments that both label alike.
    """

    model: str
    toxicity_model: str
    judge_model: str
    train_prompts: str
    eval_prompts: str
    toxicity_accuracy: float
    judge_accuracy: float
    agreement: float


@dataclass(frozen=True)
class OfflineSettings:
    """Sizes of the embedded models and data; the defaults take about a minute on two cores."""

    lm_texts: int = 30_000
    labelled: int = 8_000
    held_out: int = 1_000
    train_prompts: int = 2_000
    eval_prompts: int = 300
    vocab_size: int = 1_600
    lm_hidden_size: int = 128
    lm_layers: int = 2
    classifier_hidden_size: int = 64
    judge_hidden_size: int = 96
    classifier_epochs: int = 2


def default_cache_dir() -> Path:
    """Return `$TRL_EXT_CACHE` if set, else `~/.cache/trl_ext/offline`."""
    return Path(os.environ.get("TRL_EXT_CACHE") or Path.home() / ".cache" / "trl_ext" / "offline")


def _accuracies(root: Path) -> dict[str, float]:
    """Return the accuracies in `assets.json`, which the first call measures and writes."""
    file = root / "assets.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # not there yet, or cut off by a crash
        measured = _measure(root)
        write_json(file, measured)
    return measured


def _measure(root: Path) -> dict[str, float]:
    rows = read_json_lines(root / "corpus" / corpus.HELD_OUT)
    texts, labels = [row["text"] for row in rows], [bool(row["label"]) for row in rows]
    toxicity = (models.toxic_probabilities(root / "toxicity-classifier", texts) > 0.5).tolist()
    judge = (models.toxic_probabilities(root / "judge-classifier", texts) > 0.5).tolist()

    def share(left: list[bool], right: list[bool]) -> float:
        return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)

    return {
        "toxicity_accuracy": share(toxicity, labels),
        "judge_accuracy": share(judge, labels),
        "agreement": share(toxicity, judge),
    }


def prepare(
    cache_dir: str | Path | None = None, seed: int = 0, settings: OfflineSettings | None = None
) -> OfflineAssets:
    """Make the models and prompts of the offline recipe, or find them in the cache.

    Args:
        cache_dir: Folder of the cache; `default_cache_dir()` if None.
        seed: Seed of the grammar and of the training runs.
        settings: Sizes; other sizes, another seed or another version of this package make a new folder.

    Returns:
        Paths and held-out accuracies, also in `assets.json` beside the models.

    Raises:
        OSError: If the cache directory cannot be written.
    """
    settings = settings or OfflineSettings()
    files = [module.__file__ for module in (vocabulary, grammar, corpus, models)]
    root = Path(cache_dir or default_cache_dir()).expanduser().resolve() / f"offline-{cache.key(settings, seed, files)}"
    sizes = {
        name: getattr(settings, name) for name in ("lm_texts", "labelled", "held_out", "train_prompts", "eval_prompts")
    }
    data = cache.build_once(root / "corpus", lambda folder: corpus.write_corpus(folder, seed=seed, **sizes))
    model = cache.build_once(
        root / "lm",
        lambda folder: models.train_language_model(
            data / corpus.LM_TEXTS,
            folder,
            seed=seed,
            vocab_size=settings.vocab_size,
            hidden_size=settings.lm_hidden_size,
            layers=settings.lm_layers,
        ),
    )
    shared = {"seed": seed, "vocab_size": settings.vocab_size, "epochs": settings.classifier_epochs}
    toxicity_model = cache.build_once(
        root / "toxicity-classifier",
        lambda folder: models.train_toxicity_classifier(
            data / corpus.HALF_A, folder, hidden_size=settings.classifier_hidden_size, **shared
        ),
    )
    judge_model = cache.build_once(
        root / "judge-classifier",
        lambda folder: models.train_judge(
            data / corpus.HALF_B, folder, hidden_size=settings.judge_hidden_size, **shared
        ),
    )
    return OfflineAssets(
        str(model),
        str(toxicity_model),
        str(judge_model),
        str(data / corpus.TRAIN_PROMPTS),
        str(data / corpus.EVAL_PROMPTS),
        **_accuracies(root),
    )
