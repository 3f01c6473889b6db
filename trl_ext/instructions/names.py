# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Names of models and data in the instruction recipe, checked before the first stage."""

from pathlib import Path
from typing import Any

from trl import ModelConfig

from trl_ext.config import PPOConfig
from trl_ext.monitoring.progress import PhaseProgress
from trl_ext.running.names import check_critic, check_judge, check_model, check_reward_model
from trl_ext.worlds.instructions_models import prepare_instructions

from .comparison import read_run
from .options import RUNS_REWARD, PPOStage, PreferenceData, RewardStage, RunOptions, SupervisedStage

__all__ = ["resolve_names"]


def resolve_names(
    run: RunOptions,
    sft: SupervisedStage,
    pairs: PreferenceData,
    reward: RewardStage,
    ppo: PPOStage,
    *,
    args: PPOConfig,
    model_args: ModelConfig,
) -> tuple[str, str] | None:
    """Put the embedded example in the place of names that were not given, if no model was given, and check the names.

    Returns:
        Files of the embedded prompts to train and to evaluate on; None where the user's own take their place.

    Raises:
        ValueError: if a name is missing or leads nowhere, or the judge is the reward.
    """
    embedded = None
    if model_args.model_name_or_path is None:
        with PhaseProgress().phase("prepare"):
            assets = prepare_instructions(run.offline_cache_dir)
        model_args.model_name_or_path = assets.model
        sft.sft_dataset = sft.sft_dataset or assets.demonstrations
        if ppo.dataset_name is None and pairs.preference_dataset is None:
            ppo.dataset_name = assets.train_prompts
            embedded = assets.train_prompts, assets.eval_prompts
    check_judge(ppo.judge_model, reward.reward_model)
    if embedded is None and pairs.preference_dataset is None:
        given = {"reward": reward.reward_model, "ppo": ppo.dataset_name, "sft": sft.sft_dataset}
        for stage, name in given.items():
            if name is None and stage in run.stages:
                raise ValueError(f"Stage `{stage}` needs data: give `--preference_dataset`; see `--help`.")
    trusted: dict[str, Any] = {"trust_remote_code": args.trust_remote_code}
    revision = model_args.model_revision
    config = check_model("model_name_or_path", str(model_args.model_name_or_path), revision=revision, **trusted)
    if args.critic != RUNS_REWARD:
        check_critic(args, config, has_lora=model_args.use_peft, **trusted)
    for option, name in (("reward_model", reward.reward_model), ("judge_model", ppo.judge_model)):
        if name is not None:
            check_reward_model(option, name, **trusted)
    if "eval" in run.stages and run.compare_with not in (None, run.ppo_folder):
        read_run(Path(str(args.output_dir)).expanduser().resolve() / str(run.compare_with))
    return embedded
