# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The PPO stage: rewards, calibration, monitor and training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_ext.actor_critic.interpolation import WeightPath
from trl_ext.checkpoint import newest_whole
from trl_ext.config import PPOConfig
from trl_ext.folders import is_whole_model, remove, whole_folder
from trl_ext.monitoring.reward_hacking import RewardHackingMonitor
from trl_ext.rewards import PreferenceReward
from trl_ext.rewards.warm import average_reward_models
from trl_ext.running.best_eta import UNSCALED, keep_best
from trl_ext.running.data import rename_prompts
from trl_ext.running.interrupts import OrderlyStop
from trl_ext.running.policy import of_average
from trl_ext.text.decoding import as_completions
from trl_ext.trainer import PPOTrainer

from .comparison import Measured
from .options import RUNS_REWARD, PPOStage
from .rewards import calibrate, combine, is_adapter, load_rewards, with_reward_adapters
from .sampling import sample_answers


def make_trainer(
    stage: PPOStage,
    args: PPOConfig,
    model_args: ModelConfig,
    *,
    policy: str,
    reward_models: list[str],
    max_length: int,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Dataset,
    eval_prompts: Dataset,
    gold: Any | None,
    ptx_dataset: Dataset | None,
    folder: Path,
    category: str | None = None,
) -> tuple[PPOTrainer, Dataset, RewardHackingMonitor]:
    """Put policy, rewards, data and monitor together.

    Args:
        policy: Folder or name of the model to start from.
        reward_models: Folders or names.
        max_length: Tokens of a text that a reward model reads.
        prompts: Column `prompt`, and others that the gold reward reads.
        eval_prompts: The same, held out.
        gold: Reward function of the monitor.
        ptx_dataset: Texts of PPO-ptx; used where `ptx_coef` is above 0.
        folder: Folder of the PPO run.
        category: Column of both with the category of each prompt.

    Returns:
        The trainer, which watches `num_monitor_prompts` of `eval_prompts`, and all of those, with every column that the
        rewards read; and the monitor.
    """
    given = _reward_folders(stage, reward_models, folder)
    peft_config, quantization_config = get_peft_config(model_args), get_quantization_config(model_args)
    if args.critic == RUNS_REWARD:
        args.critic = given[0]
    model: Any = policy
    on_base = is_adapter(given[0])
    if on_base and peft_config is not None:
        model, members = with_reward_adapters(
            given,
            policy,
            tokenizer,
            args,
            peft_config=peft_config,
            quantization_config=quantization_config,
            max_length=max_length,
        )
    else:
        options = {} if quantization_config is None else {"quantization_config": quantization_config}
        members = load_rewards(
            given, policy, tokenizer, args, max_length=max_length, init_kwargs=options if on_base else {}
        )
    options = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    prompts, eval_prompts = _calibrate(stage, args, members, policy, tokenizer, (prompts, eval_prompts), options)
    built_by_hand = model is not policy
    monitor = RewardHackingMonitor(
        gold, max_kl=stage.gold_kl_budget, category=category, stop_on_alarm=stage.stop_on_alarm
    )
    if gold is not None and (stage.gold_kl_budget is not None or args.load_best_model_at_end):
        args.load_best_model_at_end, args.greater_is_better = True, True
        args.metric_for_best_model = "eval_monitor/gold" + ("_in_budget" if stage.gold_kl_budget else "")
    watched = eval_prompts.select(range(min(stage.num_monitor_prompts, len(eval_prompts))))
    trainer = PPOTrainer(
        model=model,
        reward_funcs=[combine(members, stage, tokenizer)],
        eval_reward_funcs=None if gold is None else [gold],
        args=args,
        train_dataset=rename_prompts(prompts, args.prompt_column),
        eval_dataset=rename_prompts(watched, args.prompt_column),
        processing_class=tokenizer,
        peft_config=None if built_by_hand else peft_config,
        quantization_config=None if built_by_hand else quantization_config,
        callbacks=[monitor],
        ptx_dataset=ptx_dataset if args.ptx_coef else None,
    )
    return trainer, eval_prompts, monitor


def _reward_folders(stage: PPOStage, names: list[str], folder: Path) -> list[str]:
    """Return the reward models that `aggregation` needs: all, the first, or one with averaged weights."""
    if stage.aggregation == "first" or len(names) == 1:
        return names[:1]
    if stage.aggregation != "warm":
        return names
    averaged = folder / "warm"
    if not is_whole_model(averaged):
        remove(averaged)
        average_reward_models(names, averaged)
    return [str(averaged)]


def _calibrate(
    stage: PPOStage,
    args: PPOConfig,
    members: list[PreferenceReward],
    policy: str,
    tokenizer: PreTrainedTokenizerBase,
    datasets: tuple[Dataset, Dataset],
    options: dict[str, Any],
) -> tuple[Dataset, Dataset]:
    """Calibrate the rewards on completions of the initial policy, which PAR also needs as a column of the prompts."""

    def answers(prompts: list[Any]) -> list[Any]:
        return as_completions(prompts, sample_answers(policy, tokenizer, prompts, args, args.seed, options))

    train, held_out = datasets
    count = min(stage.calibration_prompts, len(train))
    given = train["prompt"][: len(train) if stage.shaping == "par" else count]
    completions = answers(given)
    calibrate(members, given[:count], completions[:count])
    if stage.shaping != "par":
        return train, held_out
    name = "reference_completion"
    return train.add_column(name, completions), held_out.add_column(name, answers(held_out["prompt"][:]))


def train(
    trainer: PPOTrainer, monitor: RewardHackingMonitor, folder: Path, stage: PPOStage, choice: Dataset | None
) -> dict[str, Any]:
    """Train from the newest whole checkpoint in `folder`, if there is one, and save the policy in `folder/model`.

    Args:
        trainer: The trainer.
        monitor: Its monitor.
        folder: Folder of the PPO run.
        stage: Says whether the best of several etas is kept.
        choice: Evaluation prompts to choose eta on; None where it is not chosen.

    Returns:
        `model` (folder), `alarms`, and `log_history`, which begins with an evaluation of the initial policy; and where
        eta was chosen, what `keep_best` returns.
    """
    if trainer.args.eval_strategy != "no":
        trainer.evaluate()  # of the initial policy, also where training goes on: gains count from there
    start = trainer.state.log_history
    newest = newest_whole(folder)
    with OrderlyStop(trainer):
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    with whole_folder(folder / "model", replace=True) as target:
        trainer.save_model(str(target))
        kept: dict[str, Any] = {}
        if stage.keep_best_eta and choice is not None:
            rows = rename_prompts(choice, trainer.args.prompt_column)[:]
            kept = keep_best(trainer, stage.keep_best_eta, stage.kl_budget, rows, target)
    alarms = [alarm._asdict() for alarm in monitor.alarms]
    history = [*start, *trainer.state.log_history]
    return {"model": str(folder / "model"), "log_history": history, "alarms": alarms, **kept}


def load(trainer: PPOTrainer, result: Mapping[str, Any], measure: Callable[[], Measured]) -> Measured | None:
    """Put the policy that `train` has saved into a fresh trainer, and measure its average on the way.

    Args:
        trainer: A trainer at the beginning of the run.
        result: As `train` returned it.
        measure: Measures the policy as it is.

    Returns:
        The measurement of the average of the policy; None without `policy_ema_decay`.
    """
    folder, eta = Path(result["model"]), result.get("eta")
    trainer.model.load_policy(folder if eta is None else folder / UNSCALED)
    if trainer.policy_average.is_on:
        trainer.policy_average.load(folder)
    average = of_average(trainer, lambda _: measure())
    if eta is not None:
        WeightPath(trainer.model).move_to(eta)
    return average
