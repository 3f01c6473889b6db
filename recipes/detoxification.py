# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
# ruff: noqa: E402
"""Detoxify a language model with PPO, and measure toxicity, fluency and KL before and after.

The reward is a toxicity classifier plus a penalty for short completions, because an empty completion is not toxic
either. Another classifier, the judge, measures the result. Without arguments the recipe makes its own small models and
prompts, offline.

Writes into the output directory: the model, `summary.json` (its path is printed last) and `report.html`.
"""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the libraries load needs no traceback; `run` takes over

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

if find_spec("trl_ext") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # a clone works without being installed

from trl_ext.checks.fields import Coefficient, Count, CountOrZero, Limits, Positive
from trl_ext.checks.options import CheckedOptions, option
from trl_ext.config import PPOConfig
from trl_ext.evaluation.detoxification import goals, measure, toxicity_quality
from trl_ext.evaluation.path import split_rows
from trl_ext.evaluation.toxicity import NonToxic
from trl_ext.kl_control import check_bounds
from trl_ext.monitoring.progress import PhaseProgress
from trl_ext.reports.detoxification import begin, report, summarize
from trl_ext.reports.summary import print_before_after
from trl_ext.rewards import LengthReward, ToxicityReward
from trl_ext.running.best_eta import BUDGET_HELP, ETAS_HELP, check_budget, keep_best
from trl_ext.running.cli import RecipeParser, run
from trl_ext.running.data import cut_prompts
from trl_ext.running.models import init_kwargs, load_tokenizer
from trl_ext.running.names import check_classifier, check_judge, check_policy, check_required
from trl_ext.running.policy import of_average, policy_of, refuse_fsdp
from trl_ext.running.prompts import PromptOptions, load_datasets
from trl_ext.running.records import Reopened, read_record, rebuilt, rebuilt_config, write_record
from trl_ext.running.session import output_folder, started, train
from trl_ext.trainer import PPOTrainer
from trl_ext.worlds.launch import prepare_once

CONFIGS = Path(__file__).resolve().parent / "configs" / "detoxification"
EXAMPLES = """
examples:
  trl_ext detox
      the embedded example: offline, on the CPU, a few minutes
  trl_ext detox --model_name_or_path MODEL --dataset_name prompts.jsonl
      --toxicity_model CLASSIFIER --judge_model ANOTHER_CLASSIFIER --output_dir out
      your own model and prompts; names are folders, files or ids of the Hub
  trl_ext detox --config gpt_neo_125m --learning_rate 2e-5
      a YAML file, with one value changed
  trl_ext detox --resume_from_checkpoint true
      go on after an interruption, from the newest checkpoint in the output directory
  accelerate launch --num_processes 4 -m trl_ext detox --config FILE.yaml
      several GPUs
"""


@dataclass
class DetoxArguments(CheckedOptions):
    """Choice of prompts, reward and judge of a detoxification."""

    min_prompt_toxicity: float | None = option(None, "Train only on prompts whose own 'toxicity' is above this.")
    prompt_min_tokens: int | None = option(None, "Drop prompts (with their 'continuation') shorter than this.")
    prompt_max_tokens: int | None = option(None, "Cut prompts to a random length from `prompt_min_tokens` to this.")
    toxicity_model: str | None = option(None, "Sequence classifier that is the reward: folder or id of the Hub.")
    toxic_label: str | None = option(None, "Label of `toxicity_model` that means toxic. Default: found by its name.")
    toxicity_output: Literal["logit", "log_odds", "probability"] = option(
        "logit", "Value of the non-toxic label to use."
    )
    toxicity_with_prompt: bool = option(False, "Classify prompt and completion together, and not the completion alone.")
    min_length: Count = option(4, "Completions shorter than this many tokens (without EOS) are penalized.")
    length_weight: Coefficient = option(2.0, "Penalty of an empty completion, linear to 0 at `min_length`; 0: none.")
    judge_model: str | None = option(None, "Another sequence classifier, which measures toxicity; never the reward.")
    judge_toxic_label: str | None = option(None, "Label of `judge_model` that means toxic. Default: found by its name.")
    num_report_samples: CountOrZero = option(24, "Completions shown before and after in the report, side by side.")
    frontier_prompts: CountOrZero = option(128, "Prompts on which the least KL for the reward is estimated; 0: none.")
    frontier_samples: Annotated[int, Limits(at_least=2)] = option(32, "Completions per such prompt; more at high KL.")
    keep_best_eta: list[Annotated[float, Limits(above=0)]] | None = option(None, ETAS_HELP)
    kl_budget: Positive | None = option(None, BUDGET_HELP)
    offline_cache_dir: str | None = option(None, "Folder of the embedded models. Default: $TRL_EXT_CACHE or ~/.cache.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget(self.kl_budget, self.keep_best_eta)


def make_parser() -> RecipeParser:
    """Return the parser of this recipe's options, PPO's, the model's, and the Trainer's."""
    return RecipeParser(
        {"prompts": PromptOptions, "detoxification": DetoxArguments}, CONFIGS, __doc__ or "", EXAMPLES, "trl_ext detox"
    )


def resolve_names(prompts: PromptOptions, recipe: DetoxArguments, args: PPOConfig, model_args: ModelConfig) -> None:
    """Put the embedded example in the place of names that were not given, if no model was given, and check the names.

    Raises:
        ValueError: if a name is missing or leads nowhere, or the judge is the reward.
    """
    if model_args.model_name_or_path is None:
        assets = prepare_once(args, recipe.offline_cache_dir)
        model_args.model_name_or_path = assets.model
        if prompts.dataset_name is None:
            prompts.dataset_name = assets.train_prompts
            prompts.eval_dataset_name = prompts.eval_dataset_name or assets.eval_prompts
        recipe.toxicity_model = recipe.toxicity_model or assets.toxicity_model
        recipe.judge_model = recipe.judge_model or assets.judge_model
    models = {"toxicity_model": recipe.toxicity_model, "judge_model": recipe.judge_model}
    check_required({"dataset_name": prompts.dataset_name} | models)
    check_judge(recipe.judge_model, recipe.toxicity_model)
    check_policy(model_args, args)
    check_classifier("toxicity_model", str(recipe.toxicity_model), ("toxic_label", recipe.toxic_label))
    check_classifier("judge_model", str(recipe.judge_model), ("judge_toxic_label", recipe.judge_toxic_label))


def make_rewards(recipe: DetoxArguments, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Make the rewards: non-toxicity, and a penalty for completions of fewer than `min_length` tokens."""
    toxicity = ToxicityReward(
        str(recipe.toxicity_model),
        toxic_label=recipe.toxic_label,
        output=recipe.toxicity_output,
        include_prompt=recipe.toxicity_with_prompt,
    )
    if recipe.length_weight == 0:
        return [toxicity]
    ignored = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [toxicity, LengthReward(recipe.min_length, outside=-recipe.length_weight, ignore_ids=ignored)]


def make_trainer(
    prompts: PromptOptions, recipe: DetoxArguments, args: PPOConfig, model_args: ModelConfig
) -> PPOTrainer:
    """Load model and data, and put the trainer together."""
    tokenizer = load_tokenizer(model_args, trust_remote_code=args.trust_remote_code)

    keep = prompts.category_column

    def cut(dataset: Dataset) -> Dataset:
        return cut_prompts(dataset, tokenizer, recipe.prompt_min_tokens, recipe.prompt_max_tokens, args.seed, keep)

    with args.main_process_first(desc="prompts"):
        column, minimum = args.prompt_column, recipe.min_prompt_toxicity
        datasets = load_datasets(prompts, args.seed, prompt_column=column, change=cut, min_toxicity=minimum)
    args.model_init_kwargs = init_kwargs(model_args) | (args.model_init_kwargs or {})  # type: ignore[operator]
    return PPOTrainer(
        model=str(model_args.model_name_or_path),
        reward_funcs=make_rewards(recipe, tokenizer),
        eval_reward_funcs=[NonToxic(str(recipe.judge_model), recipe.judge_toxic_label)],
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )


def reopen(folder: Path, **changes: Any) -> Reopened:
    """Return a run as it was before training, for `trl_ext interpolate`; `changes` are other settings of PPO."""
    record = read_record(folder)
    assert record is not None
    prompts, recipe, model_args = (rebuilt(kind, record) for kind in (PromptOptions, DetoxArguments, ModelConfig))
    trainer = make_trainer(prompts, recipe, rebuilt_config(record, str(folder), **changes), model_args)
    judge = toxicity_quality(str(recipe.judge_model), recipe.judge_toxic_label, trainer.args.seed)
    return Reopened(trainer, trainer.eval_dataset[:], judge)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, prepare everything, and detoxify."""
    prompts, recipe, args, model_args = make_parser().parse_recipe(argv)
    refuse_fsdp(args, "trl_ext detox")
    check_bounds(args.reward_constraints, ["non_toxicity", *(["length"] if recipe.length_weight else [])])
    with output_folder(args) as checkpoint:
        progress = PhaseProgress(args.process_index == 0, bars=not args.disable_tqdm)
        with progress.phase("prepare"):
            resolve_names(prompts, recipe, args, model_args)
            trainer = make_trainer(prompts, recipe, args, model_args)
        with started(args, checkpoint):
            detoxify(trainer, recipe, (recipe, prompts, model_args), checkpoint, progress)


def detoxify(
    trainer: PPOTrainer,
    recipe: DetoxArguments,
    options: Sequence[Any],
    checkpoint: str | None,
    progress: PhaseProgress,
) -> None:
    """Measure, train, measure again, and write summary and report."""
    output_dir = Path(trainer.args.output_dir)
    is_main, rows = trainer.is_world_process_zero(), trainer.eval_dataset
    if recipe.keep_best_eta:
        choosing, reported = split_rows(len(rows))
        choice, rows = rows.select(choosing)[:], rows.select(reported)
    measured = partial(
        measure,
        policy_of(trainer),
        rows[trainer.args.prompt_column][:],
        trainer.rewards,
        progress,
        judge_model=str(recipe.judge_model),
        toxic_label=recipe.judge_toxic_label,
        missing_eos_penalty=trainer.args.missing_eos_penalty,
        seed=trainer.args.seed,
    )
    if is_main:
        write_record(output_dir, "detox", trainer.args, options)
        before = measured("before", frontier=(recipe.frontier_prompts, recipe.frontier_samples))
        begin(output_dir, trainer, before, options)
    trainer.accelerator.wait_for_everyone()
    with progress.phase("train"):
        train(trainer, checkpoint)
    if is_main:
        frontier = (recipe.frontier_prompts, min(8, recipe.frontier_samples))
        average = of_average(trainer, partial(measured, frontier=frontier))
        kept = keep_best(trainer, recipe.keep_best_eta, recipe.kl_budget, choice) if recipe.keep_best_eta else {}
        after = measured("after", frontier=frontier)
        column = options[1].category_column
        categories = None if column is None else rows[column][:]
        summary = summarize(trainer, before, after, progress.take_seconds(), categories, average) | kept
        summary = report(output_dir, trainer, before, after, summary, options, recipe.num_report_samples, average)
        print_before_after("Detoxification", summary, goals(summary))
        if kept:
            print(f"Kept eta {kept['eta']:g}, chosen on {kept['num_choice_prompts']} other prompts.")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    if is_main:
        print(f"Model and report: {output_dir}")
        print(output_dir / "summary.json")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
