# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The reward stage: pairs, reward models and their accuracy."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.config import PPOConfig
from trl_ext.evaluation.reward_models import evaluate_reward_models
from trl_ext.files import read_json_lines, write_json_lines
from trl_ext.folders import remove
from trl_ext.monitoring.console import CONSOLE
from trl_ext.rewards import PreferenceReward
from trl_ext.worlds.instructions import grade

from .data import StageData
from .options import RewardStage
from .preferences import keep_last_turns
from .rewards import load_rewards
from .sampling import rank_pairs, sample_answers
from .training import CHECKPOINTS, train_reward_model


def work(
    folder: Path,
    start: str,
    stage: RewardStage,
    args: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    data: StageData,
    loading: dict[str, Any],
) -> dict[str, Any]:
    """Make or read the pairs, train the models that are not there yet, and measure all of them on held-out pairs.

    Args:
        folder: Folder of the stage.
        start: Model that the reward models start from.
        data: Data of the stage; pairs that it lacks are sampled for the embedded prompts and ranked by the embedded
            judge.
        loading: `init_kwargs` and `peft_config`.

    Returns:
        `models` (folders or names) and the report of `evaluate_reward_models`.
    """
    if data.preferences.preference_dataset is not None:
        pairs, held_out = (keep_last_turns(part, tokenizer, stage.reward_max_length) for part in data.pairs)
    elif data.embedded is None:
        return {"models": [str(stage.reward_model)]}  # nothing to test it on
    else:
        pairs, held_out = sampled_pairs(folder, start, stage, args, tokenizer, data, loading["init_kwargs"])
    if stage.reward_model is not None:
        models = [stage.reward_model]
    else:
        models = [str(folder / f"model-{i}") for i in range(stage.num_reward_models)]
        for i, name in enumerate(models):
            train_reward_model(folder, Path(name), start, tokenizer, pairs, args, stage, seed=args.seed + i, **loading)
        remove(folder / CHECKPOINTS)
    init_kwargs = loading["init_kwargs"]
    members = load_rewards(models, start, tokenizer, args, max_length=stage.reward_max_length, init_kwargs=init_kwargs)
    return {"models": models, "training_pairs": len(pairs)} | measure(members, held_out, tokenizer)


def measure(members: list[PreferenceReward], pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the report on the mean of the members, and `member_accuracies`."""
    with CONSOLE.activity(f"scoring {len(pairs):,} held-out pairs", long=True):
        whole, reports = evaluate_reward_models(members, list(pairs), tokenizer)
    return whole.as_dict() | {"member_accuracies": [report.accuracy.estimate for report in reports]}


def sampled_pairs(
    folder: Path,
    start: str,
    stage: RewardStage,
    args: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    data: StageData,
    init_kwargs: dict[str, Any],
) -> tuple[Dataset, Dataset]:
    """Sample noisy pairs to train on and clean pairs to measure on from the policy, or read those in the folder."""
    parts = []
    names = ("pairs_train.jsonl", "pairs_eval.jsonl")
    repeats = stage.answers_per_prompt
    sizes = ((stage.num_preference_pairs, stage.label_noise), (data.preferences.num_preference_eval, 0.0))
    for name, file, (n, noise) in zip(names, data.embedded or (), sizes, strict=True):
        path = folder / name
        if not path.is_file():
            rows = read_json_lines(Path(file))[:n]
            prompts = [row["prompt"] for row in rows for _ in range(repeats)]
            texts = sample_answers(start, tokenizer, prompts, args, args.seed + 1, init_kwargs)
            answers = [texts[i : i + repeats] for i in range(0, len(texts), repeats)]
            write_json_lines(path, rank_pairs(rows, answers, grade, n=n, label_noise=noise, seed=args.seed))
        parts.append(Dataset.from_list(read_json_lines(path)))
        if len(parts[-1]) < n:
            print(f"{len(parts[-1]):,} pairs instead of {n:,}: raise `answers_per_prompt` for more.")
    return parts[0], parts[1]
