# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
# ruff: noqa: E402
"""Train a language model with PPO on prompts and rewards of your own, and measure the rewards before and after.

A reward is a function of a Python file, a classifier, a reward model or a service; `--reward` may be repeated, and
`--eval_reward` names judges. Without arguments the recipe makes its own small model and prompts, offline.

Writes into the output directory: the model, `summary.json` (its path is printed last) and `report.html`.
"""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the libraries load needs no traceback; `run` takes over

from trl import ModelConfig, get_peft_config, get_quantization_config

if find_spec("trl_ext") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # a clone works without being installed

from trl_ext.checks.fields import CountOrZero
from trl_ext.checks.options import CheckedOptions, option
from trl_ext.config import PPOConfig
from trl_ext.monitoring.progress import PhaseProgress
from trl_ext.reports import print_before_after, report_run
from trl_ext.running.cli import RecipeParser, run
from trl_ext.running.models import init_kwargs, load_tokenizer
from trl_ext.running.named_rewards import tried_rewards
from trl_ext.running.names import check_policy, check_required, check_rewards
from trl_ext.running.policy import scored, scored_after
from trl_ext.running.prompts import PromptOptions, load_datasets
from trl_ext.running.records import Reopened, read_record, rebuilt, rebuilt_config, write_record
from trl_ext.running.session import output_folder, started, train
from trl_ext.trainer import PPOTrainer
from trl_ext.worlds.launch import prepare_once

HERE = Path(__file__).resolve().parent
EXAMPLES = """
examples:
  trl_ext ppo
      the embedded example: offline, on the CPU, a few minutes
  trl_ext ppo --model_name_or_path MODEL --dataset_name prompts.jsonl --reward my_rewards.py:brevity --output_dir out
      your own model, prompts and reward; names are folders, files or ids of the Hub
  trl_ext ppo ... --reward toxicity:CLASSIFIER --reward my_rewards.py:brevity --reward_weights 1 0.5
      a weighted sum of two rewards
  trl_ext ppo --config my_run.yaml --learning_rate 2e-5 a YAML file, with one value changed
  trl_ext ppo ... --load_in_4bit                      LoRA on a base in 4 bits, also critic and reference
  trl_ext ppo ... --resume_from_checkpoint true       go on after an interruption, from the newest checkpoint
  accelerate launch --num_processes 4 -m trl_ext ppo ...
"""


@dataclass
class PPOArguments(CheckedOptions):
    """Rewards and report of a run."""

    reward: list[str] | None = option(
        None,
        "Reward, repeated for a sum: FILE.py:FUNCTION, package.module:FUNCTION, toxicity:MODEL (a classifier), "
        "preference:MODEL (a reward model), http://ADDRESS (a service), or the name of a reward model.",
    )
    eval_reward: list[str] | None = option(None, "Judge, named as a reward: measured in evaluations, not trained on.")
    num_report_samples: CountOrZero = option(24, "Completions shown before and after in the report, side by side.")
    offline_cache_dir: str | None = option(None, "Folder of the embedded models. Default: $TRL_EXT_CACHE or ~/.cache.")


def make_parser() -> RecipeParser:
    """Return the parser of this recipe's options, PPO's, the model's, and the Trainer's."""
    groups = {"reward and report": PPOArguments, "prompts": PromptOptions}
    return RecipeParser(groups, HERE / "configs" / "ppo", __doc__ or "", EXAMPLES, "trl_ext ppo")


def resolve_names(recipe: PPOArguments, prompts: PromptOptions, args: PPOConfig, model_args: ModelConfig) -> None:
    """Put the embedded example in the place of names that were not given, if no model was given, and check the names.

    Raises:
        ValueError: if a name is missing or leads nowhere.
    """
    if model_args.model_name_or_path is None:
        assets = prepare_once(args, recipe.offline_cache_dir)
        model_args.model_name_or_path = assets.model
        prompts.dataset_name = prompts.dataset_name or assets.train_prompts
        if recipe.reward is None:
            recipe.reward = [f"toxicity:{assets.toxicity_model}", f"{HERE / 'example_rewards.py'}:enough_words"]
            recipe.eval_reward = recipe.eval_reward or [f"toxicity:{assets.judge_model}"]
    check_required({"dataset_name": prompts.dataset_name, "reward": recipe.reward or args.reward_adapters})
    check_rewards(recipe.reward or [], args, recipe.eval_reward or [])
    check_policy(model_args, args)


def make_trainer(recipe: PPOArguments, prompts: PromptOptions, args: PPOConfig, model_args: ModelConfig) -> PPOTrainer:
    """Load prompts, rewards and model, and put the trainer together."""
    with args.main_process_first(desc="prompts"):
        datasets = load_datasets(prompts, args.seed, prompt_column=args.prompt_column, keep_columns=True)
    rewards = tried_rewards(recipe.reward, datasets[0], args.prompt_column)
    args.model_init_kwargs = init_kwargs(model_args) | (args.model_init_kwargs or {})  # type: ignore[operator]
    return PPOTrainer(
        model=str(model_args.model_name_or_path),
        reward_funcs=rewards,
        eval_reward_funcs=tried_rewards(recipe.eval_reward, datasets[1], args.prompt_column, "--eval_reward"),
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        processing_class=load_tokenizer(model_args, trust_remote_code=args.trust_remote_code),
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )


def reopen(folder: Path, **changes: Any) -> Reopened:
    """Return a run as it was before training, for `trl_ext interpolate`; `changes` are other settings of PPO."""
    record = read_record(folder)
    assert record is not None
    recipe, prompts, model_args = (rebuilt(kind, record) for kind in (PPOArguments, PromptOptions, ModelConfig))
    trainer = make_trainer(recipe, prompts, rebuilt_config(record, str(folder), **changes), model_args)
    return Reopened(trainer, trainer.eval_dataset[:], None)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, prepare everything, measure, train, measure again, and report."""
    recipe, prompts, args, model_args = make_parser().parse_recipe(argv)
    with output_folder(args) as checkpoint:
        progress = PhaseProgress(args.process_index == 0, bars=not args.disable_tqdm)
        resolve_names(recipe, prompts, args, model_args)
        trainer = make_trainer(recipe, prompts, args, model_args)
        with started(args, checkpoint):
            if trainer.is_world_process_zero():
                write_record(Path(str(args.output_dir)), "ppo", args, (recipe, prompts, model_args))
            before = scored(trainer, progress, "before")
            with progress.phase("train"):
                train(trainer, checkpoint)
            measured = scored_after(trainer, progress, before)
            shown = {"options": (recipe, prompts, model_args), "num_samples": recipe.num_report_samples}
            summary = report_run(trainer, **measured, seconds=progress.take_seconds(), **shown)
            if args.push_to_hub:
                trainer.push_to_hub()
            if trainer.is_world_process_zero():
                print_before_after("PPO", summary, goals={})
                print(f"Model and report: {args.output_dir}", Path(args.output_dir) / "summary.json", sep="\n")
            trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
