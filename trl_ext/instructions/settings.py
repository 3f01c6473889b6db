# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The settings that the result of each stage depends on; a stage's fingerprint is made of them."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from trl import ModelConfig

from trl_ext.config import PPOConfig
from trl_ext.critic_modes import CRITIC_MODES, saved_critic_folder
from trl_ext.running.folders import content_of, model_content

from .options import PPOStage, PreferenceData, RewardStage, SupervisedStage

__all__ = ["StageSettings"]

_DATA = ("sft_dataset", "preference_dataset", "preference_eval_dataset", "ptx_dataset", "dataset_name", "eval_dataset")
_MODELS = ("model_name_or_path", "reward_model", "judge_model")
# Settings of PPO that the other two trainings use as well, and those that sampled pairs depend on.
_SHARED = ("seed", "bf16", "fp16", "optim", "gradient_checkpointing", "per_device_train_batch_size")
_SAMPLING = ("temperature", "top_p", "top_k", "max_completion_length")
# Fields of TrainingArguments that change nothing about the result, by the beginnings of their names.
_INCIDENTAL = (
    "output_dir", "logging", "log_", "save_", "disable_tqdm", "report_to", "push_to_hub", "hub_", "run_name",
    "resume_from", "num_completions", "load_best", "metric_for", "greater_is", "project", "trackio",
)  # fmt: skip
# Fields that PPOConfig and the stage have gained, at the value that runs had before: records of those still hold.
_GAINED = {"kl_schedule": "linear", "critic_target_modules": None, "num_critics": 1, "critic_agreement_share": 0.2}
_GAINED |= {"keep_best_eta": None, "kl_budget": None, "answers_per_prompt": 4, "critic_reads_reward_every": None}


class StageSettings:
    """Settings by stage, with the digest of each file and folder in place of its name: another content is noticed.

    Args:
        args: Configuration of PPO, as the user gave it.
        model_args: The model that everything starts from.
    """

    def __init__(self, args: PPOConfig, model_args: ModelConfig):
        self._args, self._model = args, asdict(model_args)
        self._shared = self._model | {name: getattr(args, name) for name in _SHARED}
        contents = (dict.fromkeys(_DATA, cache(content_of)), dict.fromkeys(_MODELS, cache(model_content)))
        self._contents = contents[0] | contents[1] | {"critic": cache(_critic_content)}

    def sft(self, stage: SupervisedStage, pairs: PreferenceData) -> dict[str, Any]:
        """Return the settings of the `sft` stage, which learns from the pairs where it has no dataset."""
        return self._by_content(asdict(stage) | ({} if stage.sft_dataset else asdict(pairs)) | self._shared)

    def reward(self, stage: RewardStage, pairs: PreferenceData, embedded: tuple[str, str] | None) -> dict[str, Any]:
        """Return the settings of the `reward` stage; without a dataset its pairs are sampled for `embedded` prompts."""
        settings = asdict(pairs) | asdict(stage) | self._shared
        if pairs.preference_dataset is None and embedded is not None:
            settings |= {name: getattr(self._args, name) for name in _SAMPLING}
            settings |= {"dataset_name": embedded[0], "eval_dataset": embedded[1]}
        return self._by_content(settings)

    def ppo(
        self, stage: PPOStage, demonstrations: SupervisedStage, num_eval_prompts: int, embedded: tuple[str, str] | None
    ) -> dict[str, Any]:
        """Return the settings of the `ppo` stage."""
        settings = asdict(stage)
        if self._args.ptx_coef and stage.ptx_dataset is None:
            settings |= {"sft_dataset": demonstrations.sft_dataset, "sft_split": demonstrations.sft_split}
        if (embedded is None and stage.dataset_name is not None) or stage.keep_best_eta:
            # They are taken from those to train on, or eta is chosen on half of them.
            settings["num_eval_prompts"] = num_eval_prompts
        ppo = {name: value for name, value in self._args.to_dict().items() if not name.startswith(_INCIDENTAL)}
        settings |= ppo | self._model
        return self._by_content(settings)

    def _by_content(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: str(self._contents[name](value))
            if name in self._contents and isinstance(value, str) and value not in CRITIC_MODES
            else value
            for name, value in settings.items()
            if _GAINED.get(name, ...) != value
        }


def _critic_content(name: str) -> str | None:
    """Identify a critic: of a run's folder, what is in the subfolder of its critic."""
    return model_content(str(saved_critic_folder(name) or name))
